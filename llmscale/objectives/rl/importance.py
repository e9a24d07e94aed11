"""How likely a token is to the trainer against the engine that generated it: the same weights, other kernels,
so that what is learned from is a little off policy."""

import torch
from torch import Tensor

from llmscale.objectives.rl.kl import LARGEST_EXPONENT


def truncated_weights(old: Tensor, rollout: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(π_old / π_rollout, cap) of tokens, without gradient (arXiv:1802.01561,
    section 4.1): unbiased where they are below the cap, and of bounded variance.

    Args:
        old: the trainer's log-probabilities of the policy that generated.
        rollout: the generating engine's.
    """
    ratio = torch.exp((old - rollout).detach().clamp(max=LARGEST_EXPONENT))
    return ratio.clamp(max=cap)
