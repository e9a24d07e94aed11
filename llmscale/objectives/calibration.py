"""How often a model is right that is sure to some degree: expected calibration error (arXiv:1706.04599).

Shapes: D statements that are right or wrong, K bins of confidence.
"""

from collections.abc import Sequence

import torch
from pydantic import JsonValue
from torch import Tensor

BINS = 10
"""Of equal width between 1/2 and 1: who is less sure says the opposite."""


def calibration_sums(logit_D: Tensor, is_true_D: Tensor, weight_D: Tensor) -> Tensor:
    """By bin the weight, the confidence and what was right, one behind the other, [3 × `BINS`], float64.

    Args:
        logit_D: the log odds that the model gives to the statement.
        is_true_D: bool, it is so.
    """
    confidence_D = torch.sigmoid(logit_D.double().abs())
    is_right_D = ((logit_D > 0) == is_true_D).double()
    bin_D = ((confidence_D - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    columns_3D = torch.stack((torch.ones_like(confidence_D), confidence_D, is_right_D)) * weight_D
    # A product with where each belongs: additions in place have no fixed order on GPUs.
    places_DK = torch.nn.functional.one_hot(bin_D, BINS).double()
    return (columns_3D @ places_DK).flatten()


def calibration(sums: Sequence[float]) -> dict[str, JsonValue]:
    """`calibration_error`, the mean distance of confidence and accuracy, and `calibration`: of each bin that
    has any its count, its share, its mean confidence and its accuracy."""
    bins = list(zip(sums[:BINS], sums[BINS : 2 * BINS], sums[2 * BINS :]))
    total = sum(weight for weight, _, _ in bins)
    error = sum(abs(confidence - right) for _, confidence, right in bins) / max(total, 1.0)
    table: list[JsonValue] = [
        {
            "count": weight,
            "share": weight / total,
            "confidence": confidence / weight,
            "accuracy": right / weight,
        }
        for weight, confidence, right in bins
        if weight
    ]
    return {"calibration_error": error, "calibration": table}
