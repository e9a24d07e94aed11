"""What advantages are made of, and what they are.

Shapes: N samples of the global batch, S tokens of the longest; where a sample has fewer nothing is learned.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rewarded:
    """Samples with their rewards. Those without a learned token take no part in any comparison."""

    rewards_NS: Tensor
    """Of each token (`llmscale.objectives.rl.token_rewards`)."""
    learned_NS: Tensor
    """bool, tokens that the policy has chosen; between them others may stand, of several turns."""
    group_N: Tensor | None = None
    """int64, equal for answers to the same prompt."""
    values_NS: Tensor | None = None
    """What the critic expects before each token."""

    @property
    def counts_N(self) -> Tensor:
        return self.learned_NS.any(dim=1)

    @property
    def totals_N(self) -> Tensor:
        """Reward of each whole sample."""
        return torch.where(self.learned_NS, self.rewards_NS, 0.0).sum(dim=1)

    def spread(self, values_N: Tensor) -> Tensor:
        """The same at every learned token of a sample, in the type of the rewards."""
        return torch.where(self.learned_NS, values_N[:, None], 0.0).to(self.rewards_NS.dtype)


class Advantages(NamedTuple):
    """0 where nothing is learned."""

    advantages_NS: Tensor
    """By how much better a token was than expected."""
    returns_NS: Tensor | None
    """What the critic should have expected; None where there is none."""


def groups_of(rewarded: Rewarded) -> Tensor:
    """
    Raises:
        ValueError: nobody said which samples belong together.
    """
    if rewarded.group_N is None:
        raise ValueError("the samples have no groups to be compared in")
    return rewarded.group_N
