"""What the losses of pairs are functions of, and what they return.

Shapes: G pairs, a chosen and a rejected answer to one prompt each.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class PairLogProbabilities:
    """Log-probabilities of whole answers, summed over their tokens, and how many tokens those are."""

    policy_chosen_G: Tensor
    policy_rejected_G: Tensor
    reference_chosen_G: Tensor
    reference_rejected_G: Tensor
    chosen_tokens_G: Tensor
    rejected_tokens_G: Tensor

    @property
    def chosen_ratio_G(self) -> Tensor:
        """log π(chosen) / π_reference(chosen)."""
        return self.policy_chosen_G - self.reference_chosen_G

    @property
    def rejected_ratio_G(self) -> Tensor:
        return self.policy_rejected_G - self.reference_rejected_G

    @property
    def per_token(self) -> "PairLogProbabilities":
        """Means over the tokens of each answer in place of sums (0 of an answer without tokens)."""
        chosen_G, rejected_G = self.chosen_tokens_G.clamp(min=1), self.rejected_tokens_G.clamp(min=1)
        return replace(
            self,
            policy_chosen_G=self.policy_chosen_G / chosen_G,
            policy_rejected_G=self.policy_rejected_G / rejected_G,
            reference_chosen_G=self.reference_chosen_G / chosen_G,
            reference_rejected_G=self.reference_rejected_G / rejected_G,
        )


class PairLosses(NamedTuple):
    """Of each pair."""

    loss_G: Tensor
    chosen_rewards_G: Tensor
    """Without gradient: what the loss takes for the reward of the answer."""
    rejected_rewards_G: Tensor


def with_rewards(loss_G: Tensor, chosen_rewards_G: Tensor, rejected_rewards_G: Tensor) -> PairLosses:
    return PairLosses(loss_G, chosen_rewards_G.detach(), rejected_rewards_G.detach())
