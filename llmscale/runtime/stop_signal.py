"""A signal raises a flag instead of ending the process. No torch."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers send before they kill, and a terminal that closes. Ctrl-C goes to the agent, which
sends SIGTERM."""


class _Flag:
    raised = False


def install() -> None:
    """Let the signals raise the flag; what is ignored (`nohup`) stays so. Main thread only."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise_flag)


def requested() -> bool:
    """Whether a signal has come to this process."""
    return _Flag.raised


def _raise_flag(_number: int, _frame: FrameType | None) -> None:
    _Flag.raised = True
