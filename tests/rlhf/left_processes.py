"""Whether processes are left that were started meanwhile."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def nothing_left() -> Iterator[None]:
    """
    Raises:
        AssertionError: a descendant runs after the block that did not before.
    """
    before = _descendants()
    yield
    assert _descendants() - before == set()


def _descendants() -> set[psutil.Process]:
    return {one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE}


def assert_gone(pids: Iterable[int], seconds: float = 60.0) -> None:
    """None of these processes runs any more, or they all end in time."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in left]
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
