"""The clipped surrogate of PPO (arXiv:1707.06347, equation 7), negated, with its later bounds:

    loss = −min(r A, clip(r, 1 − ε, 1 + ε_high) A)          ε_high > ε: arXiv:2503.14476, section 3.1
    loss = min(loss, −c A)  where A < 0                     dual clip: arXiv:1912.09729, equation 5

Elementwise, of ratios r = π / π_old.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmscale.objectives.rl.kl import LARGEST_EXPONENT


class ClippedLoss(NamedTuple):
    """All of the shape of the ratios."""

    loss: Tensor
    ratio: Tensor
    """Without gradient, as is what follows."""
    is_low: Tensor
    """bool: nothing is learned, as the policy has turned away from it far enough."""
    is_high: Tensor
    """bool: nothing is learned, as the policy has turned to it far enough."""
    is_dual: Tensor
    """bool: nothing is learned, as the weight would be too large."""


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """π / π_old, far beyond all that is learned from without gradient and finite."""
    return torch.exp(log_ratio.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT))


def clipped(
    log_ratio: Tensor, advantages: Tensor, clip: float, clip_high: float, dual_clip: float | None
) -> ClippedLoss:
    """
    Args:
        clip: ε.
        clip_high: ε_high.
        dual_clip: c, above 1 + ε_high.
    """
    ratio = bounded_ratio(log_ratio)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages)
    is_dual = torch.zeros_like(advantages, dtype=torch.bool)
    if dual_clip is not None:
        is_dual = (advantages < 0) & (ratio > dual_clip)
        loss = torch.where(is_dual, -dual_clip * advantages, loss)
    return ClippedLoss(
        loss,
        ratio.detach(),
        is_low=(ratio < 1 - clip) & (advantages < 0),
        is_high=(ratio > 1 + clip_high) & (advantages > 0),
        is_dual=is_dual,
    )
