"""Whether processes are left that were started meanwhile."""

from collections.abc import Iterator
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
