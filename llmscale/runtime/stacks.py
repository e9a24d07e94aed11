"""What the ranks of a node are doing right now, without asking them to do anything.

A rank that hangs runs no Python. `faulthandler` writes the stacks in the signal's handler itself, so they
come even from a rank that holds the interpreter's lock. One that is stopped answers nothing; then the
kernel's word for its state is all there is, and enough.
"""

import contextlib
import faulthandler
import linecache
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from llmscale.control.culprit import FRAME
from llmscale.control.messages import Evidence
from llmscale.runtime.activity import STOPPED, process_state

DUMP_SIGNAL = signal.SIGUSR2
"""SIGUSR1 is a request to stop."""

POLL_SECONDS = 0.02
MOST_FRAMES = 20
SILENT = (*STOPPED, "Z", "X")
"""States in which no answer can come."""
QUIET_SECONDS = 0.1
"""A dump that has not grown for this long is complete."""

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')

_open_dumps: list[TextIO] = []
"""The handler writes to a descriptor; its file must stay open as long as the process lives."""


def install_dump(folder: Path, rank: int) -> None:
    """Let DUMP_SIGNAL write the stacks of all threads to this rank's file of the node's beats folder.

    Main thread only; the file's first line says which of the threads that is.
    """
    file = stacks_path(folder, rank).open("w")
    faulthandler.register(DUMP_SIGNAL, file, all_threads=True, chain=False)
    # Last: without a handler the signal would end the rank, so the agent waits for this line.
    file.write(f"{threading.main_thread().ident:x}\n")
    file.flush()
    _open_dumps.append(file)


def stacks_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.stacks"


@dataclass
class _Look:
    """One rank being looked at."""

    rank: int
    pid: int
    path: Path
    state: str
    start: int
    """Size of the file before the dump; 0 where none can come."""
    size: int = 0
    changed: float = 0.0

    def is_over(self, now: float) -> bool:
        if not self.start or self.state in SILENT:
            return True
        size = self.path.stat().st_size
        if size != self.size:
            self.size, self.changed = size, now
        return size > self.start and now - self.changed > QUIET_SECONDS


def collect_evidence(
    folder: Path, pids: Mapping[int, int], steps: Mapping[int, int], seconds: float = 2.0
) -> tuple[Evidence, ...]:
    """State and stack of every rank of this node.

    Args:
        folder: the node's beats folder.
        pids: rank -> process, of the ranks to look at.
        steps: rank -> steps done, as the beats say.
        seconds: how long ranks may take to answer; those that have not are described without a stack.
    """
    looks = [_begin(folder, rank, pid) for rank, pid in pids.items()]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(look.is_over(time.monotonic()) for look in looks):
        time.sleep(POLL_SECONDS)
    host = socket.gethostname()
    return tuple(
        Evidence(look.rank, host, look.pid, look.state, _stack(look), steps.get(look.rank, 0))
        for look in looks
    )


def _begin(folder: Path, rank: int, pid: int) -> _Look:
    path, state = stacks_path(folder, rank), process_state(pid)
    start = path.stat().st_size if path.exists() else 0
    # A stopped rank would get the signal when it goes on, and answer nobody.
    if start and state not in SILENT:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, DUMP_SIGNAL)
    return _Look(rank, pid, path, state, start)


def _stack(look: _Look) -> tuple[str, ...]:
    """Frames of the main thread, innermost first; none where the rank has not answered."""
    if not look.start or look.path.stat().st_size == look.start:
        return ()
    with look.path.open() as file:
        main_thread = int(file.readline(), 16)
        file.seek(look.start)
        lines = file.read().splitlines()
    return tuple(_main_frames(lines, main_thread))[:MOST_FRAMES]


def _main_frames(lines: list[str], main_thread: int) -> Iterator[str]:
    inside = False
    for line in lines:
        if thread := _THREAD.match(line):
            inside = int(thread[1], 16) == main_thread
        elif inside and (frame := _FRAME.match(line)):
            file, number, function = frame[1], int(frame[2]), frame[3]
            text = linecache.getline(file, number).strip()
            yield FRAME.format(file=file, line=number, function=function, text=text)
