"""Reward models: a score at the last token of each answer, learned from comparisons or from outcomes.

Every group of the global batch counts once, by the mean over its pairs, or over its answers.

Shapes: B rows, L documents of the fullest row, G pairs, D answers.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor

from llmscale.config.preferences import RewardSection
from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.bradley_terry import bradley_terry
from llmscale.objectives.calibration import BINS, calibration, calibration_sums
from llmscale.objectives.objective import Objective
from llmscale.objectives.outcome import outcome
from llmscale.objectives.pairs import group_count, groups_of, pair_places
from llmscale.objectives.pooling import pooled_scores
from llmscale.objectives.regress import Regress


class Reward(Objective):
    """What both ways have in common."""

    @property
    def for_fingerprint(self) -> Objective:
        return Regress()

    def count(self, batch: Batch) -> float:
        return float(group_count(batch))

    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return self.loss_and_sums(model, output, batch)[0]

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return self.loss_and_sums(model, output, batch)[1]

    @abstractmethod
    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]: ...


class ComparedReward(Reward):
    """A higher score for the best answer of each group than for each of the others.

    Args:
        options: of `bradley_terry`.
    """

    def __init__(self, options: RewardSection) -> None:
        self.options = options

    @property
    def sum_count(self) -> int:
        return 4 + 3 * BINS

    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Beside the loss: groups, scores of both sides, pairs that are right, and the calibration of
        σ(chosen − rejected)."""
        places, scores_BL = pair_places(batch), scores_of_documents(output, batch)
        chosen_G, rejected_G = places.chosen(scores_BL), places.rejected(scores_BL)
        margin_BL = batch.margin_BL if self.options.margin else None
        margin_G = 0.0 if margin_BL is None else places.rejected(margin_BL).to(scores_BL)
        loss_G = bradley_terry(chosen_G, rejected_G, margin_G, self.options.label_smoothing)
        with torch.no_grad():
            difference_G = chosen_G - rejected_G
            is_right_G = difference_G > 0
            columns = (torch.ones_like(chosen_G), chosen_G, rejected_G, is_right_G)
            figures = torch.stack([column.double() for column in columns]) @ places.weight_G
            bins = calibration_sums(difference_G, torch.ones_like(is_right_G), places.weight_G)
        return (loss_G * places.weight_G).sum(), torch.cat((figures, bins))

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """Means over the groups: `accuracy`, `margin`, `chosen_score`, `rejected_score`; and the calibration
        (`llmscale.objectives.calibration`) of the probability that the chosen answer is the better one."""
        groups, chosen, rejected, right = (total / max(sums[0], 1.0) for total in sums[:4])
        found: dict[str, JsonValue] = {
            "accuracy": right,
            "margin": chosen - rejected,
            "chosen_score": chosen,
            "rejected_score": rejected,
        }
        return {**found, **calibration(sums[4:])}


class OutcomeReward(Reward):
    """Whether an answer is right: its own label where it has one; else the best answer of its group is."""

    @property
    def sum_count(self) -> int:
        return 5 + 3 * BINS

    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Beside the loss: right answers and their scores, wrong ones and theirs, how many were told apart,
        and the calibration of σ(score)."""
        group_BL, role_BL = groups_of(batch)
        present_BL = group_BL >= 0
        members_BL = (group_BL[:, :, None] == group_BL[:, None, :]).sum(-1)
        score_D = scores_of_documents(output, batch)[present_BL]
        is_right_D = _is_right(batch, role_BL)[present_BL]
        weight_D = 1.0 / members_BL[present_BL].double()
        loss_D = outcome(score_D, is_right_D)
        with torch.no_grad():
            right_D, told_D = is_right_D.double(), ((score_D > 0) == is_right_D).double()
            columns = (right_D, right_D * score_D, 1 - right_D, (1 - right_D) * score_D, told_D)
            bins = calibration_sums(score_D, is_right_D, torch.ones_like(right_D))
            figures = torch.stack([column.sum() for column in columns])
        return (loss_D * weight_D).sum(), torch.cat((figures, bins))

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """Means over the answers, with the names of `ComparedReward`: `chosen_score` is that of the right
        answers, `rejected_score` of the wrong ones, and None where there is none."""
        right, right_score, wrong, wrong_score, told = sums[:5]
        chosen = right_score / right if right else None
        rejected = wrong_score / wrong if wrong else None
        found: dict[str, JsonValue] = {
            "accuracy": told / max(right + wrong, 1.0),
            "margin": None if chosen is None or rejected is None else chosen - rejected,
            "chosen_score": chosen,
            "rejected_score": rejected,
        }
        return {**found, **calibration(sums[5:])}


def scores_of_documents(output: Tensor, batch: Batch) -> Tensor:
    """Score at the last token of each document, [B, L], 0 where a row has fewer; float32 or float64.

    Args:
        output: scores of all tokens, [S, B, 1].
    """
    present_BL = groups_of(batch)[0] >= 0
    scores_D = pooled_scores(output, batch)[:, 0]
    documents = int(present_BL.sum())
    if len(scores_D) != documents:
        raise ValueError(f"{len(scores_D)} tokens are marked, and {documents} documents have one each")
    return scores_D.new_zeros(present_BL.shape).masked_scatter(present_BL, scores_D)


def _is_right(batch: Batch, role_BL: Tensor) -> Tensor:
    """bool, [B, L]."""
    is_best_BL = role_BL == 0
    if batch.targets_BL is None:
        return is_best_BL
    # Rows that only fill a validation up may give fewer columns of targets than there are documents.
    missing = role_BL.shape[1] - batch.targets_BL.shape[1]
    targets_BL = F.pad(batch.targets_BL, (0, missing), value=torch.nan)
    return torch.where(targets_BL.isfinite(), targets_BL > 0.5, is_best_BL)
