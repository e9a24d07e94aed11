"""When the next request may go out: rates, a pause that the endpoint asks for, and growing waits."""

import random
import threading
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from llmscale.config.endpoint import LimitsSection

FIRST_WAIT_SECONDS = 0.5


class Stopped(Exception):
    """Somebody has asked the command to stop."""


class Pace:
    """Shared by the threads that ask one endpoint.

    Requests go out evenly, never in a burst, so that no minute has more than the rates allow.

    Args:
        stop: ends every wait.
    """

    def __init__(self, limits: LimitsSection, stop: threading.Event) -> None:
        self._request_seconds = 60 / limits.requests_per_minute if limits.requests_per_minute else 0.0
        self._token_seconds = 60 / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        self._longest = limits.longest_wait_seconds
        self._stop = stop
        self._lock = threading.Lock()
        self._next_turn = time.monotonic()
        self._paused_until = 0.0

    def wait_for_turn(self, tokens: int) -> None:
        """
        Args:
            tokens: that the request will probably cost.

        Raises:
            Stopped: before the turn came.
        """
        with self._lock:
            turn = max(time.monotonic(), self._next_turn)
            self._next_turn = turn + max(self._request_seconds, tokens * self._token_seconds)
        while (left := max(turn, self._paused_until) - time.monotonic()) > 0:
            self.sleep(left)
        if self._stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Nobody asks before that time is over: the endpoint wants it."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """
        Raises:
            Stopped: in the meantime.
        """
        if self._stop.wait(seconds):
            raise Stopped

    def backoff(self, tries: int) -> float:
        """Seconds before the next try: twice as long after each, by chance up to half shorter, so that
        threads that failed together do not come back together."""
        longest = min(self._longest, FIRST_WAIT_SECONDS * 2 ** min(tries, 32))
        return longest * random.uniform(0.5, 1)


def retry_after(value: str | None) -> float | None:
    """Seconds that the header Retry-After names, as a number or as a date; None: it names none."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (aware - datetime.now(timezone.utc)).total_seconds())
