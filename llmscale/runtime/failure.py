"""Whose fault it was: from how the ranks ended to one name."""

import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from llmscale.runtime.ranks import RankProcess


@dataclass(frozen=True)
class Failure:
    """The rank that failed first, as far as can be told."""

    rank: int
    host: str
    pid: int
    cause: str
    """`killed by SIGKILL`, `exit code 0 before it was done`, `ValueError: ...`"""
    exit_code: int | None
    """What the entry returned: a verdict on the run (2: bad input), which a restart would only repeat."""
    log: str
    log_lines: tuple[str, ...]

    def describe(self) -> str:
        """For people: who, why, and the rank's last words."""
        head = f"rank {self.rank} on {self.host} (pid {self.pid}) failed: {self.cause}"
        return "\n".join([head, *(f"  | {line}" for line in self.log_lines), f"  whole log: {self.log}"])


def find_failure(ranks: Sequence[RankProcess], saved_code: int) -> Failure | None:
    """The culprit among ranks that failed, or None while all are well.

    When one rank dies, the others soon raise errors about a lost connection. So a rank that ended
    without a word (a signal, an early exit) comes before those that raised, and of those the first
    to raise. Of several silent ones a signal comes first.
    """
    silent: list[Failure] = []
    spoken: list[tuple[float, Failure]] = []
    for rank in ranks:
        # The exit code is read before the pipe: a rank speaks first and ends then.
        exit_code = rank.process.exitcode
        rank.poll()
        if rank.ending is None:
            if exit_code is not None:
                silent.append(_failure(rank, _cause(exit_code), None))
        elif rank.ending.exit_code not in (0, saved_code):
            spoken.append((rank.ending.time, _failure(rank, rank.ending.cause, rank.ending.exit_code)))
    if silent:
        return min(silent, key=lambda failure: not failure.cause.startswith("killed"))
    return min(spoken, key=lambda pair: pair[0])[1] if spoken else None


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code} before it was done"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = " (out of memory, if nobody sent it)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def _failure(rank: RankProcess, cause: str, exit_code: int | None) -> Failure:
    return Failure(
        rank=rank.rank,
        host=socket.gethostname(),
        pid=rank.pid,
        cause=cause,
        exit_code=exit_code,
        log=str(rank.log),
        log_lines=tuple(rank.log_tail()),
    )
