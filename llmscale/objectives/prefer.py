"""Learning from pairs without a reward model: DPO and its family.

Every group of the global batch counts once; one of several rejected answers by the mean over its pairs.

Shapes: B rows, L documents of the fullest row, G pairs.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import JsonValue
from torch import Tensor

from llmscale.config.preferences import DpoSection
from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.document_log_probabilities import document_log_probabilities
from llmscale.objectives.objective import Objective
from llmscale.objectives.pairs import group_count, pair_places
from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses
from llmscale.objectives.preference.table import losses_of_pairs


class Preference(Objective):
    """The best answer of each group before the others.

    Args:
        options: which loss, and what it reads; any but kto.
    """

    def __init__(self, options: DpoSection) -> None:
        self.options = options

    @property
    def for_fingerprint(self) -> Objective:
        return CausalLM()

    @property
    def has_reference(self) -> bool:
        return self.options.has_reference

    def count(self, batch: Batch) -> float:
        return float(group_count(batch))

    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return self.loss_and_sums(model, output, batch)[0]

    @property
    def sum_count(self) -> int:
        return 8

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Groups, and what `metrics` divides by them."""
        return self.loss_and_sums(model, output, batch)[1]

    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        places = pair_places(batch)
        found = document_log_probabilities(model, output, batch)
        policy_BL, tokens_BL = found.log_probabilities_BL, found.learned_tokens_BL
        reference_BL = self._reference(batch, policy_BL)
        pairs = PairLogProbabilities(
            policy_chosen_G=places.chosen(policy_BL),
            policy_rejected_G=places.rejected(policy_BL),
            reference_chosen_G=places.chosen(reference_BL),
            reference_rejected_G=places.rejected(reference_BL),
            chosen_tokens_G=places.chosen(tokens_BL),
            rejected_tokens_G=places.rejected(tokens_BL),
        )
        losses = losses_of_pairs(pairs, self.options)
        sft_G = -pairs.per_token.policy_chosen_G
        loss = ((losses.loss_G + self.options.sft_weight * sft_G) * places.weight_G).sum()
        with torch.no_grad():
            figures = _figures(pairs, losses, sft_G) @ places.weight_G
        return loss, figures

    def _reference(self, batch: Batch, policy_BL: Tensor) -> Tensor:
        """
        Raises:
            ValueError: the loss needs a reference, and the batch has none.
        """
        if not self.options.has_reference or batch.group_BL is None:  # nothing looks at it
            return policy_BL.detach()
        if batch.reference_BL is None:
            raise ValueError("the batch has no log-probabilities of the reference model")
        return batch.reference_BL

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """Means over the groups: the `chosen_reward` and `rejected_reward` by which the loss compares,
        `margin` (their difference), `accuracy` (how often it is above 0), `chosen_log_probability` and
        `rejected_log_probability` (of whole answers), `sft_loss` (the mean over the tokens of each chosen
        answer, where it has a weight) and `kl`, where there is a reference.

        `kl` is the mean of log π_ref / π over the answers: the divergence of the policy from the reference,
        KL(π_ref ‖ π) a whole answer, as far as the answers are such as the reference gives. Where others
        wrote them it may be below 0.
        """
        groups, *totals = sums
        chosen, rejected, right, chosen_log, rejected_log, kl, sft = (
            total / max(groups, 1.0) for total in totals
        )
        found: dict[str, JsonValue] = {
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "margin": chosen - rejected,
            "accuracy": right,
            "chosen_log_probability": chosen_log,
            "rejected_log_probability": rejected_log,
        }
        if self.options.has_reference:
            found["kl"] = kl
        if self.options.sft_weight:
            found["sft_loss"] = sft
        return found


def _figures(pairs: PairLogProbabilities, losses: PairLosses, sft_G: Tensor) -> Tensor:
    """What is summed over the pairs by their weights, [8, G]."""
    is_right_G = (losses.chosen_rewards_G > losses.rejected_rewards_G).double()
    kl_G = -(pairs.chosen_ratio_G + pairs.rejected_ratio_G) / 2
    rewards = (losses.chosen_rewards_G, losses.rejected_rewards_G, is_right_G)
    log_probabilities = (pairs.policy_chosen_G, pairs.policy_rejected_G, kl_G, sft_G)
    return torch.stack((torch.ones_like(is_right_G), *rewards, *log_probabilities))
