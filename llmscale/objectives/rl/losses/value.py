"""The critic's loss: squared error, clipped as in the implementation of PPO (arXiv:2005.12729, section 3):

    loss = max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²) / 2

Elementwise.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ValueLoss(NamedTuple):
    loss: Tensor
    is_clipped: Tensor
    """bool: nothing is learned."""


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> ValueLoss:
    """
    Args:
        old_values: of the critic when the answers were given.
        clip: ε; None: the plain squared error.
    """
    plain = (values - returns).square()
    if clip is None:
        return ValueLoss(plain / 2, torch.zeros_like(plain, dtype=torch.bool))
    held = values.clamp(old_values - clip, old_values + clip)
    clipped = (held - returns).square()
    return ValueLoss(torch.maximum(plain, clipped) / 2, clipped > plain)
