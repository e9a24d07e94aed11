"""Rotary position embedding (arXiv:2104.09864) in the layout of Hugging Face's Llama.

The first half of a head's dimensions is turned against the second half.
"""

import torch
from torch import Tensor


def rotate(heads_SBND: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor) -> Tensor:
    """Turn every head by its position's angles.

    Args:
        heads_SBND: queries or keys, [sequence, batch, heads, head size].
        cosine_SBD: [sequence, batch or 1, head size], in the dtype of the heads.
        sine_SBD: likewise.
    """
    half = heads_SBND.shape[-1] // 2
    swapped = torch.cat((-heads_SBND[..., half:], heads_SBND[..., :half]), dim=-1)
    return heads_SBND * cosine_SBD.unsqueeze(2) + swapped * sine_SBD.unsqueeze(2)
