"""KTO (arXiv:2402.01306), of answers that are good or bad by themselves:

    r = log π(answer)/π_ref(answer)        z = max(0, KL(π ‖ π_ref)), without gradient
    loss = λ_D (1 − σ(β (r − z))) of a desirable answer, λ_U (1 − σ(β (z − r))) of an undesirable one

It starts at λ/2. z is estimated from answers to other prompts of the same batch: the mean of
log π(y)/π_ref(y) over mismatched pairs of prompt and answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class AnswerLosses(NamedTuple):
    """Of each answer."""

    loss_G: Tensor
    rewards_G: Tensor
    """Without gradient."""


def kto(
    policy_G: Tensor,
    reference_G: Tensor,
    is_desirable_G: Tensor,
    kl: float,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> AnswerLosses:
    """
    Args:
        policy_G: log-probability of each answer, summed over its tokens.
        reference_G: the same of the reference.
        is_desirable_G: bool.
        kl: z, from `divergence`.
        beta: how far the policy is held to the reference.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.
    """
    ratio_G = policy_G - reference_G
    gain_G = torch.where(is_desirable_G, ratio_G - kl, kl - ratio_G)
    weight_G = torch.where(is_desirable_G, desirable_weight, undesirable_weight)
    return AnswerLosses(weight_G * torch.sigmoid(-beta * gain_G), beta * ratio_G.detach())


def divergence(sums: Sequence[float]) -> float:
    """z of KTO.

    Args:
        sums: over the global batch: log π(y)/π_ref(y) of the mismatched answers, and how many those are.
    """
    ratio, count = sums
    return max(0.0, ratio / max(count, 1.0))
