"""Whose fault it was: from how the ranks ended to one name."""

import signal
import socket
import time
from collections.abc import Sequence

from llmscale.control.messages import Failure, FailureKind, first_failure
from llmscale.runtime.ranks import RankProcess


def find_failure(ranks: Sequence[RankProcess], saved_code: int) -> Failure | None:
    """The culprit among ranks that failed, or None while all are well.

    When one rank dies, the others soon raise errors about a lost connection. So a rank that ended
    without a word (a signal, an early exit) comes before those that raised, and of those the first
    to raise. Of several silent ones a signal comes first.
    """
    failures: list[Failure] = []
    for rank in ranks:
        # The exit code is read before the pipe: a rank speaks first and ends then.
        exit_code = rank.process.exitcode
        rank.poll()
        if rank.ending is None:
            if exit_code is not None:
                kind = "exit" if exit_code >= 0 else "signal"
                failures.append(_failure(rank, _cause(exit_code), None, kind, time.time()))
        elif rank.ending.exit_code not in (0, saved_code):
            kind = "error" if rank.ending.exit_code is None else "refused"
            ending = rank.ending
            failures.append(_failure(rank, ending.cause, ending.exit_code, kind, ending.time))
    return first_failure(failures) if failures else None


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code} before it was done"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = " (out of memory, if nobody sent it)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def _failure(rank: RankProcess, cause: str, exit_code: int | None, kind: FailureKind, when: float) -> Failure:
    return Failure(
        rank=rank.rank,
        host=socket.gethostname(),
        pid=rank.pid,
        cause=cause,
        exit_code=exit_code,
        log=str(rank.log),
        log_lines=tuple(rank.log_tail()),
        kind=kind,
        time=when,
    )
