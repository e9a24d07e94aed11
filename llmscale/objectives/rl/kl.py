"""Divergence of the policy from a reference at sampled tokens: Schulman's three estimators
("Approximating KL divergence", 2020).

With d = log π − log π_ref at a token drawn from π, the mean of each is or approximates KL(π ‖ π_ref):

    k1 = d                     unbiased; of either sign
    k2 = d² / 2                biased, little variance
    k3 = exp(−d) − 1 + d       unbiased, never below 0

What is right as a number need not be right to learn from (arXiv:2510.01555). The gradient of the divergence
is the mean of d ∇log π:

    k1 in the reward           exactly that
    k2 in the loss             exactly that, while the policy is the one that answered
    k3 in the loss             (1 − exp(−d)) ∇log π: near it for small d, bounded for large ones (GRPO's)
    k1 in the loss             ∇log π, whose mean is 0: it holds nothing
    k2, k3 in the reward       gradients of other things than the divergence; k3's is 0 to first order in d

A term in the loss times π / π_old, differentiated through, is right for the unbiased ones (k1, k3) whichever
policy answered.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_EXPONENT = 20.0
"""Beyond it exponentials are held, without gradient: a token that one of two policies thinks impossible gives
no infinity, nor infinity × 0 in a gradient."""


def k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    return torch.expm1((-log_ratio).clamp(max=LARGEST_EXPONENT)) + log_ratio


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Each from log π − log π_ref of tokens that π has drawn, elementwise."""
