"""A run on the terminal: a live bar, or plain lines where there is no terminal.

It reads `metrics.jsonl` and `events.jsonl` as they grow, so it stands in the agent, lives through
restarts of the ranks, and needs no words with them.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llmscale.config.schema import Config
from llmscale.runtime import events, metrics
from llmscale.runtime.describe import describe_event, duration, quantity
from llmscale.runtime.lines import is_whole
from llmscale.runtime.watcher import Watcher

READ_SECONDS = 0.2
LINE_SECONDS = 10.0
"""Without a terminal: seconds between lines."""
SAID = ("prepared", "referred", "resumed", "tuned", "saved", "validated", "stopped_early")
"""Events that are a line each."""
SPEED_STEPS = 20
"""Steps over which the time that is left is judged."""


class Follower:
    """The lines that a file of JSON lines gains; begins again where the file was replaced."""

    def __init__(self, path: Path, from_start: bool = False) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() and not from_start else 0
        self.inode = path.stat().st_ino if path.exists() else None
        self.rest = b""

    def new(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        state = self.path.stat()
        if state.st_ino != self.inode or state.st_size < self.offset:
            # Resumed: what stands in the new file was shown before.
            replaced = self.inode is not None
            self.inode, self.rest = state.st_ino, b""
            self.offset = state.st_size if replaced else 0
        if state.st_size == self.offset:
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = self.rest + file.read()
            self.offset = file.tell()
        whole, end, self.rest = data.rpartition(b"\n")
        for line in (whole + end).splitlines(keepends=True):
            if is_whole(line):
                yield json.loads(line)


class Progress(Watcher):
    """Shows a run until `close`; used as a context manager."""

    def __init__(self, config: Config, folder: Path, console: Console) -> None:
        self.steps = config.train.last_step
        """Until the ranks say more: under `train.epochs` only they know."""
        self.console = console
        self.metrics = Follower(folder / metrics.FILE_NAME)
        self.events = Follower(folder / events.FILE_NAME)
        self.latest: dict[str, Any] | None = None
        self.recent: deque[float] = deque(maxlen=SPEED_STEPS)
        self.next_read = 0.0
        self.next_line = 0.0
        how = config.logging.progress
        self.bar = how == "bar" or (how == "auto" and console.is_terminal)
        self.lines = how == "lines" or (how == "auto" and not self.bar)
        self.live = Live(console=console, auto_refresh=False, transient=False) if self.bar else None
        self.spinner = Spinner("dots", f"starting {config.world_size} ranks")

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._read(last=True)
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def poll(self) -> None:
        now = time.monotonic()
        if now >= self.next_read:
            self.next_read = now + READ_SECONDS
            self._read()

    def _read(self, last: bool = False) -> None:
        for record in self.metrics.new():
            self.latest = record
            self.recent.append(record["step_seconds"])
            self.steps = record.get("steps", self.steps)
        for event in self.events.new():
            if event["event"] in SAID:
                self.say(describe_event(event["event"], event["step"], event))
            if event["event"] == "stopped_early":
                self.steps = event["step"]
        if self.live:
            self.live.update(self._bar() if self.latest else self.spinner, refresh=True)
        elif self.lines and self.latest and (last or time.monotonic() >= self.next_line):
            self.next_line = time.monotonic() + LINE_SECONDS
            self.say(self._line(self.latest))
            self.latest = None

    def _line(self, record: dict[str, Any]) -> str:
        return f"step {record['step']}/{self.steps}  " + "  ".join(self._numbers(record))

    def _bar(self) -> Table:
        record = self.latest or {}
        table = Table.grid(padding=(0, 1))
        table.add_row(
            Text(f"step {record['step']}/{self.steps}", style="bold"),
            ProgressBar(total=self.steps, completed=record["step"], width=24),
            Text("  ".join(self._numbers(record))),
        )
        return table

    def _numbers(self, record: dict[str, Any]) -> Iterator[str]:
        yield f"loss {record['loss']:.4f}"
        if record.get("accuracy") is not None:
            yield f"accuracy {record['accuracy']:.1%}"
        yield f"{quantity(record['tokens_per_second'])} tokens/s"
        if record.get("mfu") is not None:
            yield f"MFU {record['mfu']:.1%}"
        yield f"ETA {duration((self.steps - record['step']) * sum(self.recent) / len(self.recent))}"
        if record.get("memory_bytes"):
            yield f"{record['memory_bytes'] / 2**30:.2f} GiB"
