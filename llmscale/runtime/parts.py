"""`part.json`: which part of a step a run is at, for whoever looks: a terminal, `llmscale status`.

One small file that is replaced at every part. It tells about now only, so it is not brought to disk.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llmscale.control.watchdog import Phase
from llmscale.runtime.describe import duration
from llmscale.runtime.hooks import Hook, Part, RunStart

FILE_NAME = "part.json"
TOLD_AFTER = 2.0
"""Seconds in a part until it is said how long it takes."""

WORDS = {
    "rollout": "writing answers",
    "rewards": "rewards",
    "knowing": "log-probabilities",
    "learning": "learning",
}
"""Parts by the names that a task gives them; one that is not here is its own word."""


@dataclass(frozen=True)
class Now:
    """A part, and since when."""

    step: int
    name: str
    count: int
    since: float
    """Seconds since 1970."""

    def __str__(self) -> str:
        said = f"step {self.step}: {word(self.name)}" + (f" ({self.count})" if self.count else "")
        spent = time.time() - self.since
        return f"{said}, {duration(spent)}" if spent >= TOLD_AFTER else said


def word(name: str) -> str:
    """For readers."""
    return WORDS.get(name, name.replace("_", " "))


class PartFile(Hook):
    """Writes it, from the first step to the end."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / FILE_NAME
        self.step = 0

    def on_start(self, start: RunStart) -> None:
        self.step = start.step

    def on_part(self, part: Part) -> None:
        self.step = part.step
        self._write(Now(part.step, part.name, part.count, time.time()))

    def on_phase(self, phase: Phase) -> None:
        if phase in ("validating", "saving"):
            self._write(Now(self.step, phase, 0, time.time()))

    def on_end(self, step: int, preempted: bool) -> None:
        self.path.unlink(missing_ok=True)

    def _write(self, part: Now) -> None:
        temporary = self.path.with_name(f".{FILE_NAME}.new")
        temporary.write_text(json.dumps(asdict(part)))
        temporary.replace(self.path)


def read_part(run_folder: Path) -> Now | None:
    """What the run was at last; None where nothing tells."""
    try:
        return Now(**json.loads((run_folder / FILE_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
