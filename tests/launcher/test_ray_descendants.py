"""All that a keeper has started ends with it, whatever has become of the processes between."""

import subprocess
import sys

import psutil

KEEPER = """
import subprocess, sys, time
import psutil
from llmscale_launcher.ray.descendants import adopt_orphans, bury, end_descendants

def start(script):
    return int(subprocess.run(["/bin/sh", "-c", script], stdout=subprocess.PIPE).stdout)

adopt_orphans()
# In a session of its own, with no environment, and its parent has ended.
orphan = start("setsid env -i sleep 600 > /dev/null & echo $!")
child = subprocess.Popen(["sleep", "600"])
ended = start("true > /dev/null & echo $!")
while psutil.pid_exists(ended):
    bury(child.pid)
    time.sleep(0.01)
assert child.poll() is None
assert {process.pid for process in psutil.Process().children()} == {orphan, child.pid}
child.kill()
child.wait()
end_descendants()
assert psutil.Process().children() == []
print(orphan)
"""


def test_orphans_are_adopted_buried_and_ended() -> None:
    keeper = subprocess.run([sys.executable, "-c", KEEPER], capture_output=True, text=True, timeout=60)
    assert keeper.returncode == 0, keeper.stderr
    assert not psutil.pid_exists(int(keeper.stdout))
