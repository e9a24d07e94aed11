"""`events.jsonl`: what happened to a run, one JSON object a line.

The agent and rank 0 both append to it. A line is one `write` to a file opened for appending, so lines
of several processes do not mix, and a line torn by a crash is closed off by the next writer.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmscale.runtime.hooks import Hook, RunStart, SaveRecord, ValidationRecord
from llmscale.runtime.lines import append_line, is_whole, read_lines
from llmscale.runtime.sample_file import as_json

FILE_NAME = "events.jsonl"
RECENT_BYTES = 2**18
FREQUENT = (b'{"event": "saved"', b'{"event": "validated"')
"""How lines begin that there is one of for each save or validation."""

Kind = Literal[
    "submitted",
    "requeued",
    "preflight_failed",
    "started",
    "node_joined",
    "node_lost",
    "prepared",
    "referred",
    "resumed",
    "tuned",
    "saved",
    "validated",
    "hanging",
    "straggling",
    "worker_lost",
    "pool_restarted",
    "constant_answer",
    "stopped_early",
    "profiled",
    "not_profiled",
    "preempted",
    "failed",
    "restarted",
    "finished",
]


@dataclass(frozen=True)
class Event:
    kind: Kind
    time: float
    """Seconds since 1970."""
    step: int | None
    details: dict[str, Any]
    """The other fields of the line: `rank`, `host`, `pid`, `cause`, ..."""


class EventLog:
    """Appends to a run folder's `events.jsonl`."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / FILE_NAME

    def write(self, kind: Kind, step: int | None = None, **details: Any) -> None:
        """Append one event and flush it to disk."""
        line = {"event": kind, "time": time.time(), "step": step, **details}
        append_line(self.path, json.dumps(line))


def read_events(run_folder: Path) -> list[Event]:
    """All whole events of a run, oldest first; none where there is no file yet."""
    events: list[Event] = []
    for line in read_lines(run_folder / FILE_NAME):
        details = json.loads(line)
        events.append(Event(details.pop("event"), details.pop("time"), details.pop("step"), details))
    return events


def newest_events(run_folder: Path, most_bytes: int = RECENT_BYTES) -> list[Event]:
    """What of a run's events lies in the end of the file, oldest first, without `saved` and `validated`.

    Long runs are mostly those two; whoever looks at a thousand runs has no time for them.
    """
    path = run_folder / FILE_NAME
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most_bytes))
        lines = file.read().splitlines(keepends=True)
    events: list[Event] = []
    for line in lines:
        if not line.startswith(FREQUENT) and is_whole(line):
            details = json.loads(line)
            events.append(Event(details.pop("event"), details.pop("time"), details.pop("step"), details))
    return events


class EventHook(Hook):
    """What rank 0 knows: where it resumed, how much of the model it trains, and what it saved."""

    def __init__(self, run_folder: Path) -> None:
        self.log = EventLog(run_folder)

    def on_start(self, start: RunStart) -> None:
        if start.step:
            self.log.write("resumed", start.step, pid=os.getpid())
        if "peft" in start.facts:
            trained = {key: start.facts[key] for key in ("peft", "trained_parameters")}
            self.log.write("tuned", start.step, **trained, parameters=start.parameters)

    def on_validation(self, record: ValidationRecord) -> None:
        details: dict[str, Any] = {"perplexity": record.perplexity, "seconds": record.seconds}
        aims = {"loss": record.loss, "reward": record.reward}
        details = {**{name: value for name, value in aims.items() if value is not None}, **details}
        if record.metrics:
            details["metrics"] = dict(record.metrics)
        if record.forgetting is not None:
            details["forgetting"] = asdict(record.forgetting)
        if record.samples:
            details["samples"] = [as_json(sample) for sample in record.samples]
        self.log.write("validated", record.step, **details)

    def on_early_stop(self, step: int, reason: str) -> None:
        self.log.write("stopped_early", step, cause=reason)

    def on_save(self, record: SaveRecord) -> None:
        self.log.write("saved", record.step, seconds=record.seconds, path=record.path)
