"""Random answers with rewards and log-probabilities, in float64.

Shapes: N samples, S tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 3
N, S = 2 * GROUP, 6


@dataclass(frozen=True)
class Samples:
    """Answers of different lengths, one of them of the longest."""

    learned_NS: Tensor
    group_N: Tensor
    score_N: Tensor
    advantages_N: Tensor
    values_NS: Tensor
    policy_NS: Tensor
    old_NS: Tensor
    reference_NS: Tensor
    rollout_NS: Tensor
    entropy_NS: Tensor


def samples(seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths_N = torch.randint(1, S + 1, (N,), generator=generator)
    lengths_N[seed % N] = S
    old_NS = -1.5 + 0.5 * normal(N, S)
    return Samples(
        learned_NS=torch.arange(S) < lengths_N[:, None],
        group_N=torch.arange(N) // GROUP,
        score_N=normal(N),
        advantages_N=normal(N),
        values_NS=normal(N, S),
        policy_NS=old_NS + 0.4 * normal(N, S),
        old_NS=old_NS,
        reference_NS=old_NS + 0.3 * normal(N, S),
        rollout_NS=old_NS + 0.2 * normal(N, S),
        entropy_NS=normal(N, S).abs(),
    )
