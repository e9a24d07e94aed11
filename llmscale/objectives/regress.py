"""A number for a text: squared error, at its last token.

Shapes: D texts of the microbatch.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import JsonValue
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.objective import Objective
from llmscale.objectives.pooling import pooled_scores, targets_of_texts


class Regress(Objective):
    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        error_D = _error(output, batch)[0]
        return error_D.square().sum()

    def count(self, batch: Batch) -> float:
        return float(batch.loss_mask_BS.sum())

    @property
    def sum_count(self) -> int:
        return 8

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Texts, errors, and what the variances and the covariance are made of."""
        error_D, true_D = (tensor.double() for tensor in _error(output, batch))
        told_D = true_D + error_D
        terms = (torch.ones_like(true_D), error_D.square(), error_D.abs(), true_D, told_D)
        products = (true_D * true_D, told_D * told_D, true_D * told_D)
        return torch.stack([term.sum() for term in (*terms, *products)])

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """`mse`, `mae`, `r2` (the share of the variance that is explained) and `pearson`; the last two are
        None where one of the variances is 0."""
        count, squared, absolute, true, told, true_2, told_2, both = sums
        if not count:
            return {"mse": 0.0, "mae": 0.0, "r2": None, "pearson": None}
        of_true, of_told = true_2 - true * true / count, told_2 - told * told / count
        common = both - true * told / count
        # Below the rounding of such sums a variance is none.
        varies, is_told = of_true > 1e-12 * true_2, of_told > 1e-12 * told_2
        return {
            "mse": squared / count,
            "mae": absolute / count,
            "r2": 1 - squared / of_true if varies else None,
            "pearson": common / math.sqrt(of_true * of_told) if varies and is_told else None,
        }


def _error(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """What is told less what is true, and what is true, [D] each."""
    told_D = pooled_scores(output, batch).squeeze(-1)
    true_D = targets_of_texts(batch).to(told_D)
    return told_D - true_D, true_D
