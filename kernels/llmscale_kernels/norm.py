"""Root-mean-square and layer normalisation over the last dimension."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`hidden / sqrt(mean(hidden²) + epsilon) * weight` (arXiv:1910.07467), in hidden's dtype.

    Args:
        hidden: [..., H].
        weight: [H].
        epsilon: added to the mean square.
    """
    return F.rms_norm(hidden, (hidden.shape[-1],), weight, epsilon)


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`(hidden - mean) / sqrt(variance + epsilon) * weight + bias` (arXiv:1607.06450); shapes as above."""
    return F.layer_norm(hidden, (hidden.shape[-1],), weight, bias, epsilon)
