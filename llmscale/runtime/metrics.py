"""`metrics.jsonl`: one JSON object a step, each step once.

Floats are written as `repr` has them, so a reader gets the same bits back. A run that resumes from step s
repeats what came after s: those lines move to `metrics.superseded.jsonl` before the first new one.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from llmscale.runtime.hooks import Hook, RunStart, StepRecord
from llmscale.runtime.lines import read_lines

FILE_NAME = "metrics.jsonl"
TAIL_BYTES = 65536
SUPERSEDED_NAME = "metrics.superseded.jsonl"

Metrics = dict[str, Any]


class MetricsWriter(Hook):
    """Writes every `every`th step, and the last one wherever the run ends."""

    def __init__(self, run_folder: Path, every: int = 1) -> None:
        self.run_folder = run_folder
        self.every = every
        self.last_step = 0
        self.file: BinaryIO | None = None
        self.unwritten: StepRecord | None = None
        """The newest step, while it has no line."""

    def on_start(self, start: RunStart) -> None:
        supersede_after(self.run_folder, start.step)
        self.last_step = start.steps
        self.file = (self.run_folder / FILE_NAME).open("ab", buffering=0)

    def on_step(self, record: StepRecord) -> None:
        self.unwritten = record
        if record.step % self.every == 0 or record.step == self.last_step:
            self._write()

    def _write(self) -> None:
        if self.file and self.unwritten is not None:
            self.file.write(as_line(self.unwritten, self.last_step))
            self.unwritten = None

    def on_end(self, step: int, preempted: bool) -> None:
        self._write()
        if self.file:
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None


def as_line(record: StepRecord, last_step: int) -> bytes:
    """The record as one JSON line; what is not finite stands as `NaN` or `Infinity`, as Python reads it.

    Args:
        last_step: that the run ends with, as it is planned; its config does not tell under `train.epochs`.
    """
    fields = asdict(record)
    extra = fields.pop("extra")
    return (json.dumps({**fields, "steps": last_step, **extra}) + "\n").encode()


def supersede_after(run_folder: Path, step: int) -> int:
    """Move the lines after `step` to the superseded file, drop a torn last line; returns how many moved.

    The superseded lines are on disk before the metrics file is replaced: a crash in between can
    leave a line in both, never in neither.
    """
    path = run_folder / FILE_NAME
    if not path.exists():
        return 0
    kept: list[str] = []
    superseded: list[str] = []
    for line in read_lines(path):
        (kept if json.loads(line)["step"] <= step else superseded).append(line)
    if superseded:
        with (run_folder / SUPERSEDED_NAME).open("a") as file:
            file.writelines(superseded)
            file.flush()
            os.fsync(file.fileno())
    temporary = run_folder / f".{FILE_NAME}.new"
    with temporary.open("w") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return len(superseded)


def read_metrics(run_folder: Path) -> list[Metrics]:
    """The metrics of all steps, oldest first."""
    return [json.loads(line) for line in read_lines(run_folder / FILE_NAME)]


def last_metrics(run_folder: Path) -> Metrics | None:
    """The newest whole line, read from the end of the file."""
    newest = newest_metrics(run_folder, 1)
    return newest[-1] if newest else None


def newest_metrics(run_folder: Path, lines: int) -> list[Metrics]:
    """The last whole lines, oldest first; fewer where they do not fit into the end that is read."""
    path = run_folder / FILE_NAME
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - TAIL_BYTES)
        file.seek(start)
        tail = file.read()
    whole = tail.rpartition(b"\n")[0].split(b"\n")
    if start:
        del whole[0]  # it may have begun before what was read
    return [json.loads(line) for line in whole[-lines:] if line]
