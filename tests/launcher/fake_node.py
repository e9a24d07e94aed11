"""Stands in for `llmscale cluster node RUN_FOLDER`: does in each attempt what `plan.json` in the folder says.

An attempt of the plan is a list of words: `started`, `saved 5`, `preempted`, `failed`, `finished` are written
to the events; `wait` waits for SIGTERM or SIGUSR1 and writes its name to `signals`; `exit 75` and `kill 9`
end it.
"""

import json
import os
import signal
import sys
from pathlib import Path

from llmscale.runtime.events import EventLog


def main(folder: Path) -> None:
    signals = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    attempts = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(attempts[1:]))
    log = EventLog(folder)
    for order in attempts[0]:
        word, _, number = order.partition(" ")
        if word == "exit":
            sys.exit(int(number))
        elif word == "kill":
            os.kill(os.getpid(), int(number))
        elif word == "wait":
            with (folder / "signals").open("a") as file:
                file.write(signal.Signals(signal.sigwait(signals)).name + "\n")
        else:
            step = int(number) if number else None
            if word == "saved":
                checkpoint = folder / "checkpoints" / f"step-{step:08d}"
                checkpoint.mkdir(parents=True)
            log.write(word, step)


main(Path(sys.argv[1]))
