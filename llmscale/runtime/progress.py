"""A run on the terminal: a live bar, or plain lines where there is no terminal.

It reads `metrics.jsonl` and `events.jsonl` as they grow, and which part of a step it is, so it stands in the
agent, lives through restarts of the ranks, and needs no words with them.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config
from llmscale.runtime import events, metrics
from llmscale.runtime.describe import describe_event, duration, quantity, step_numbers
from llmscale.runtime.lines import is_whole
from llmscale.runtime.parts import Now, read_part
from llmscale.runtime.profiling.files import breakdown_of
from llmscale.runtime.profiling.tables import shown
from llmscale.runtime.watcher import Watcher

READ_SECONDS = 0.2
LINE_SECONDS = 10.0
"""Without a terminal: seconds between lines."""
SAID = (
    *("prepared", "referred", "resumed", "tuned", "saved", "validated", "stopped_early"),
    *("profiled", "not_profiled", "worker_lost", "pool_restarted", "constant_answer"),
)
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
        self.began = time.time()
        """When this start of the ranks was."""
        how = config.logging.progress
        self.bar = how == "bar" or (how == "auto" and console.is_terminal)
        self.lines = how == "lines" or (how == "auto" and not self.bar)
        self.live = Live(console=console, auto_refresh=False, transient=False) if self.bar else None
        self.folder = folder
        self.has_parts = config.task == "rlhf"
        self.said_part: Now | None = None
        """Without a terminal: the newest that has a line."""
        workers = sum(pool.processes for pool in pools_of(config).values()) if self.has_parts else 0
        self.start = f"starting {workers} workers" if workers else f"starting {config.world_size} ranks"
        self.spinner = Spinner("dots", self.start)

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
            if event["event"] == "profiled":
                self.console.print(shown(breakdown_of(self.folder / event["trace"])), highlight=False)
            if event["event"] == "restarted":
                self.began = time.time()
            if event["event"] == "stopped_early":
                self.steps = event["step"]
        if self.live:
            self.live.update(self._shown(last), refresh=True)
        elif self.lines and (last or time.monotonic() >= self.next_line):
            self._say_line(last)

    def _say_line(self, last: bool) -> None:
        """The newest step; where none has ended since the last line, what the one that lasts is at."""
        part = self._part() if self.latest is None and not last else None
        if self.latest is None and part in (None, self.said_part):
            return
        self.next_line = time.monotonic() + LINE_SECONDS
        if self.latest is not None:
            self.say(self._line(self.latest))
            self.latest = None
        elif part is not None:
            self.said_part = part
            self.say(str(part))

    def _part(self) -> Now | None:
        found = read_part(self.folder) if self.has_parts else None
        # What an earlier start has left tells nothing about this one.
        return None if found is None or found.since < self.began else found

    def _shown(self, last: bool) -> RenderableType:
        part = None if last else self._part()
        if self.latest is None:
            self.spinner.update(text=str(part or self.start))
            return self.spinner
        return self._bar() if part is None else Group(self._bar(), Text(f"  {part}", style="dim"))

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
        yield from step_numbers(record)
        yield f"{quantity(record['tokens_per_second'])} tokens/s"
        if record.get("mfu") is not None:
            yield f"MFU {record['mfu']:.1%}"
        yield f"ETA {duration((self.steps - record['step']) * sum(self.recent) / len(self.recent))}"
        # Of a run of reinforcement learning it would be that of the driver, which holds no model.
        if record.get("memory_bytes") and "reward_mean" not in record:
            yield f"{record['memory_bytes'] / 2**30:.2f} GiB"
