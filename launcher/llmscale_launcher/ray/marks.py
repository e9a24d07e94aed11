"""Processes on this machine that carry a mark in their environment.

Whatever a process starts inherits its environment, and the kernel shows that for as long as the process
lives. So a mark finds children of children too, and is never mistaken for another's reused process id.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

GONE_SECONDS = 30.0
POLL_SECONDS = 0.02


def end_marked(variable: str, is_meant: Callable[[str], bool]) -> list[int]:
    """Kill all processes whose `variable` is meant, and wait until they are gone; returns their ids.

    Raises:
        TimeoutError: one of them does not die, such as one that waits for a broken disk.
    """
    found: set[int] = set()
    deadline = time.monotonic() + GONE_SECONDS
    # Again and again: one may have started another between the look and the kill.
    while left := list(_marked(variable, is_meant)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {left} were killed and do not end")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        found.update(left)
        time.sleep(POLL_SECONDS)
    return sorted(found)


def _marked(variable: str, is_meant: Callable[[str], bool]) -> Iterator[int]:
    prefix = f"{variable}=".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or another user's
            continue
        values = [os.fsdecode(one[len(prefix) :]) for one in variables if one.startswith(prefix)]
        if any(map(is_meant, values)):
            yield int(folder.name)
