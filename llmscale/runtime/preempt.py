"""Asked to stop: all ranks agree on the step after which they do.

Signals reach ranks at different moments. If each looked at its own flag, one would leave the step loop
while another waits for it in a collective; so the flags are reduced, once a step.
"""

import torch
import torch.distributed as distributed

from llmscale.runtime import stop_signal


class StopAsked(Exception):
    """A signal came before there was anything to train: what was computed until then is kept on disk."""


def agreed(group: "distributed.ProcessGroup | None" = None) -> bool:
    """Whether a signal has come to any rank of `group` (None: the world). A collective."""
    if not distributed.is_initialized():
        return stop_signal.requested()
    device = "cuda" if distributed.get_backend(group) == "nccl" else "cpu"
    flag = torch.tensor(int(stop_signal.requested()), dtype=torch.int32, device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=group)
    return bool(flag.item())
