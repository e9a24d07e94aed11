"""Waiting for something to become true, never for time to pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


def wait_until(condition: Callable[[], T | None], what: str, seconds: float) -> T:
    """The first true value of `condition`, asked ten times a second.

    Raises:
        AssertionError: it did not come true within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {seconds:g} s still not so: {what}"
        time.sleep(POLL_SECONDS)
    return value
