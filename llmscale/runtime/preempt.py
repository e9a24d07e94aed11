"""Asked to stop: a signal raises a flag, and all ranks agree on the step after which they do.

Signals reach ranks at different moments. If each looked at its own flag, one would leave the step loop
while another waits for it in a collective; so the flags are reduced, once a step.
"""

import signal
from types import FrameType

import torch
import torch.distributed as distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill. SIGINT reaches the agent, which sends SIGTERM."""

EXIT_SAVED = 75
"""Saved and wants to be started again (EX_TEMPFAIL of sysexits.h)."""


class _Flag:
    raised = False


def install() -> None:
    """Let the signals raise the flag instead of ending the process. Main thread only."""
    for number in SIGNALS:
        signal.signal(number, _raise_flag)


def requested() -> bool:
    """Whether a signal has come to this process."""
    return _Flag.raised


def agreed(group: "distributed.ProcessGroup | None" = None) -> bool:
    """Whether a signal has come to any rank of `group` (None: the world). A collective; cheap."""
    if not distributed.is_initialized():
        return requested()
    device = "cuda" if distributed.get_backend(group) == "nccl" else "cpu"
    flag = torch.tensor(int(requested()), dtype=torch.int32, device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=group)
    return bool(flag.item())


def _raise_flag(_number: int, _frame: FrameType | None) -> None:
    _Flag.raised = True
