"""Calls of the workers of a pool that are under way, and how they end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from llmscale.config.problems import InputError
from llmscale.rlhf.workers import pulse
from llmscale.rlhf.workers.lost import WorkerFailed
from llmscale.rlhf.workers.team import Team
from llmscale.runtime.final import FinalFailure

GRACE_SECONDS = 5.0
"""In which it shows who was the first to fail."""
NODE_SECONDS = 60.0
"""In which Ray finds a machine that has vanished, whose peers only see that a connection has broken."""


@dataclass(frozen=True)
class Calls:
    """The same method under way on workers of a pool."""

    team: Team
    ranks: Sequence[int]
    references: Sequence[Any]
    what: str

    def results(self, seconds: float | None = None) -> list[Any]:
        """What each rank returned, in the order of the ranks.

        Args:
            seconds: how long the slowest may take from now on; None: as long as calls of this pool may.

        Raises:
            WorkerLost: a process has ended, or is not done in time. WorkerFailed: it raised an error.
            FinalFailure, InputError: it raised one that a restart would only meet again. RayLost
        """
        limit = self.team.seconds if seconds is None else seconds
        with self.team.pulse.waiting():
            waiting, deadline = list(self.references), _deadline(limit)
            while waiting:
                done, waiting = self._next(waiting, deadline)
                if not done:
                    late = [rank for rank, one in zip(self.ranks, self.references) if one in waiting]
                    raise self.team.late(late, self.what, limit or 0.0)
                if _failure(done[0]) is not None:
                    raise self._first_cause()
            try:
                return ray.get(list(self.references))
            except ray.exceptions.RayError as error:
                # A result lay on a node that has gone since.
                raise self.team.ended(self.ranks[0], self.what, error) from error

    def _next(self, waiting: list[Any], deadline: float) -> tuple[list[Any], list[Any]]:
        """One that is done, and those that are not; the first is empty where the deadline has come."""
        while True:
            left = max(0.0, deadline - time.monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=min(pulse.SECONDS, left))
            if done or not left:
                return done, waiting
            self.team.pulse.beat()

    def _first_cause(self) -> Exception:
        """A process that has ended before errors that its peers have met because of it.

        One that has failed leaves the others waiting for it in a collective, or tears them along.
        """
        self.team.pulse.beat()
        self._wait_until(lambda: not self._waiting() or bool(self._ended()), GRACE_SECONDS)
        if all(_is_of_a_peer(error) for error in self._errors().values()):
            self._wait_until(lambda: not self._waiting() or bool(self._ended()), NODE_SECONDS)
        for rank, error in self._ended().items():
            return self.team.ended(rank, self.what, error)
        errors = self._errors()
        rank, error = next(
            ((rank, error) for rank, error in errors.items() if not _is_of_a_peer(error)),
            next(iter(errors.items())),
        )
        cause = getattr(error, "cause", None)
        if isinstance(cause, (FinalFailure, InputError)):
            return cause
        return WorkerFailed(f"{self.what} on {self.team.of(rank)}: {error}")

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            waiting = self._waiting()
            ray.wait(waiting, num_returns=len(waiting), timeout=min(pulse.SECONDS, seconds))
            self.team.pulse.beat()

    def _waiting(self) -> list[Any]:
        return ray.wait(list(self.references), num_returns=len(self.references), timeout=0)[1]

    def _errors(self) -> dict[int, Exception]:
        """Of calls that are done, by rank."""
        failures = {rank: _failure(one) for rank, one in zip(self.ranks, self.references)}
        return {rank: error for rank, error in failures.items() if error is not None}

    def _ended(self) -> dict[int, Exception]:
        """Those without a process."""
        return {rank: error for rank, error in self._errors().items() if not _was_raised(error)}


def _deadline(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds


def _failure(reference: Any) -> Exception | None:
    """Why a call that is done has failed; None where it has not, or is not done."""
    try:
        ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return None
    except ray.exceptions.RayError as error:
        return error
    return None


def _was_raised(error: Exception) -> bool:
    """By the method itself."""
    return isinstance(error, ray.exceptions.RayTaskError)


def _is_of_a_peer(error: Exception) -> bool:
    """torch tells of a process group whose other end has gone."""
    return _was_raised(error) and any(
        sign in str(error) for sign in ("gloo/transport", "Connection reset", "Connection closed", "NCCL")
    )
