"""A signal in the first seconds of `llmscale train` asks to stop, like any other."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.distributed.trainings import Place


def test_a_signal_while_torch_is_being_imported(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    command = [sys.executable, "-m", "llmscale", "train", str(place.config), "run.name=early"]
    train = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        # Written after the checks and before the agent: torch is being imported.
        while not (tmp_path / "runs" / "early" / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        train.send_signal(signal.SIGTERM)
        assert train.wait(60) == 75
    finally:
        train.kill()
        train.wait()
    assert [event.kind for event in place.run("early").events("preempted")] == ["preempted"]
