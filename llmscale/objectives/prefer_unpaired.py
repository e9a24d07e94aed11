"""Learning from single answers that are good or bad: KTO.

Its estimate of the divergence is one number of the whole global batch, and every microbatch's loss needs it:
the engine runs the step's microbatches forward once before (`ahead`), sums over all ranks, and hands it over
(`begin`).

Shapes: B rows, L documents of the fullest row, G answers.
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
from llmscale.objectives.pairs import group_count, groups_of
from llmscale.objectives.preference.kto import divergence, kto


class UnpairedPreference(Objective):
    """More of the answers that are good, fewer of those that are bad.

    Args:
        options: of kto.
    """

    def __init__(self, options: DpoSection) -> None:
        self.options = options
        self.kl = 0.0
        """Of the global batch that is at work, in nats an answer."""

    @property
    def for_fingerprint(self) -> Objective:
        return CausalLM()

    @property
    def has_reference(self) -> bool:
        return True

    def count(self, batch: Batch) -> float:
        return float(group_count(batch))

    @property
    def ahead_count(self) -> int:
        return 2

    def ahead(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """log π/π_ref of the mismatched answers, and how many those are."""
        if batch.reference_BL is None:
            return output.new_zeros(2, dtype=torch.float64)
        policy_BL = document_log_probabilities(model, output, batch).log_probabilities_BL
        ratio_G = (policy_BL - batch.reference_BL)[groups_of(batch)[1] == 1]
        return torch.stack((ratio_G.sum(), torch.ones_like(ratio_G).sum()))

    def begin(self, sums: Sequence[float]) -> None:
        self.kl = divergence(sums)

    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return self.loss_and_sums(model, output, batch)[0]

    @property
    def sum_count(self) -> int:
        return 9

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Of the good answers their number, rewards and log-probabilities; the same of the bad ones; answers
        on the right side; and what `divergence` is made of."""
        return self.loss_and_sums(model, output, batch)[1]

    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        policy_BL = document_log_probabilities(model, output, batch).log_probabilities_BL
        if batch.group_BL is None:  # rows that only fill a validation up
            return policy_BL.sum(), policy_BL.new_zeros(self.sum_count)
        if batch.reference_BL is None or batch.targets_BL is None:
            raise ValueError("the batch has no log-probabilities of the reference model, or no labels")
        role_BL = groups_of(batch)[1]
        policy_G, is_good_G = policy_BL[role_BL == 0], batch.targets_BL[role_BL == 0] > 0.5
        losses = kto(
            policy_G,
            batch.reference_BL[role_BL == 0],
            is_good_G,
            self.kl,
            self.options.beta,
            self.options.desirable_weight,
            self.options.undesirable_weight,
        )
        with torch.no_grad():
            is_right_G = is_good_G == (losses.rewards_G > self.options.beta * self.kl)
            columns = torch.stack((torch.ones_like(policy_G), losses.rewards_G, policy_G))
            sides = (columns @ is_good_G.double(), columns @ (~is_good_G).double())
            mismatched_G = (policy_BL - batch.reference_BL)[role_BL == 1]
            rest = (is_right_G.sum(), mismatched_G.sum(), torch.ones_like(mismatched_G).sum())
            figures = torch.cat((*sides, torch.stack(rest).double()))
        return losses.loss_G.sum(), figures

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """The names of `Preference`: chosen answers are the good ones, rejected ones the bad; None where
        there was none. `accuracy` tells how often the reward is on the right side of β z, and `kl` is z."""
        good, bad, (right, *mismatched) = sums[:3], sums[3:6], sums[6:]
        chosen, chosen_log = _means(good)
        rejected, rejected_log = _means(bad)
        return {
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "margin": None if chosen is None or rejected is None else chosen - rejected,
            "accuracy": right / max(good[0] + bad[0], 1.0),
            "chosen_log_probability": chosen_log,
            "rejected_log_probability": rejected_log,
            "kl": divergence(mismatched),
        }


def _means(sums: Sequence[float]) -> tuple[float | None, float | None]:
    count, reward, log_probability = sums
    return (reward / count, log_probability / count) if count else (None, None)
