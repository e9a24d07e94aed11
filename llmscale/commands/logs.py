"""`llmscale logs`: what the ranks of a run have written, as they write it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from llmscale.config.problems import InputError, Problem
from llmscale.run.standing import LIVE, read_status
from llmscale.runtime.run_folder import find_run

FOLLOW_SECONDS = 0.3
ASK_SECONDS = 3.0
"""Between questions to the scheduler whether the run goes on."""

JOB_LOG = "job.log"


@dataclass
class LogFiles:
    """The logs of a run that were asked for; `print_new` prints what they have gained."""

    folder: Path
    patterns: list[str]
    last_lines: int
    """Of a file that is seen first, how many lines from its end."""
    write: Callable[[str], None] = typer.echo
    offsets: dict[Path, int] = field(default_factory=dict[Path, int])

    def print_new(self) -> None:
        """Print whole new lines of all files, those that have come since too."""
        for path in self._paths():
            if path in self.offsets:
                self.offsets[path] = self._print_from(path, self.offsets[path])
            else:
                self.offsets[path] = self._print_last(path)
        self.last_lines = NEW_FILE_LINES

    def _paths(self) -> list[Path]:
        found = {path for pattern in self.patterns for path in self.folder.glob(pattern)}
        return sorted(found, key=_place)

    def _print_last(self, path: Path) -> int:
        """Print the last lines; returns where they end. A line that is still being written waits."""
        end = 0
        lines: deque[bytes] = deque(maxlen=self.last_lines)
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    lines.append(line)
                    end += len(line)
        for line in lines:
            self._print(path, line)
        return end

    def _print_from(self, path: Path, offset: int) -> int:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._print(path, line)
                offset += len(line)
        return offset

    def _print(self, path: Path, line: bytes) -> None:
        name = path.stem.removeprefix("rank-")
        self.write(f"[{name}] {line.decode(errors='replace').rstrip()}")


NEW_FILE_LINES = 10**6
"""A file that appears while others are followed is shown from its beginning."""


def _place(path: Path) -> tuple[int, str]:
    """The job's log first, then ranks by number."""
    number = path.stem.partition("-")[2]
    return (int(number), "") if number.isdigit() else (-1, path.name)


def logs(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    rank: Annotated[int | None, typer.Option(help="Only this rank; all, and the job, if left out.")] = None,
    job: Annotated[bool, typer.Option("--job", help="Only the script, the agents, the supervisor.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines of each file.")] = 20,
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
) -> None:
    """What the job and the ranks of a run have written. Following goes on over restarts and requeues."""
    folder = find_run(run, root)
    if rank is None:
        patterns = [JOB_LOG] if job else [JOB_LOG, "rank-*.log"]
    else:
        patterns = [JOB_LOG, f"rank-{rank}.log"] if job else [f"rank-{rank}.log"]
    files = LogFiles(folder / "logs", patterns, lines)
    files.print_new()
    if follow:
        _follow(folder, files)
    if not files.offsets:
        raise InputError([Problem("RUN", run, f"{folder / 'logs'} has no {' or '.join(patterns)} yet")])


def _follow(folder: Path, files: LogFiles) -> None:
    next_question = 0.0
    while True:
        over = False
        if time.monotonic() >= next_question:
            over = read_status(folder).state not in (*LIVE, "unknown")
            next_question = time.monotonic() + ASK_SECONDS
        # Read after the question: what was written before the end is printed before the end.
        files.print_new()
        if over:
            return
        time.sleep(FOLLOW_SECONDS)
