"""Mean 0 and variance 1 over all that counts in the global batch.

Sums first, so that several processes may add theirs before anything is divided.
"""

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to the variance."""


def moments(values: Tensor, counts: Tensor) -> Tensor:
    """Number, sum and sum of squares of what counts: [3], float64, to be added up over processes.

    Args:
        counts: bool, as `values`.
    """
    # A selection, not a product: what does not count may be anything.
    counted = values[counts].double()
    return torch.stack((counted.new_tensor(len(counted)), counted.sum(), counted.square().sum()))


def whitened(values: Tensor, counts: Tensor, sums: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` with mean 0 and variance 1 (of a sample: the sum of squares by number − 1), 0 where nothing
    counts.

    Args:
        sums: `moments` of the whole global batch.
        shift_mean: else the mean is what it was (arXiv:2403.17031, of rewards).
    """
    number, total, squares = sums.tolist()
    mean = total / max(number, 1.0)
    variance = max(squares - number * mean * mean, 0.0) / max(number - 1, 1.0)
    white = (values.double() - mean) / (variance + EPSILON) ** 0.5
    return torch.where(counts, white if shift_mean else white + mean, 0.0).to(values.dtype)
