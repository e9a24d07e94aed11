"""What tokens weigh when one of them is drawn.

Shapes: B rows, V vocabulary, G blocks of the vocabulary.
"""

import torch
from torch import Tensor

from llmscale_kernels.cpu import sampling as cpu


def token_weights(logits_BV: Tensor, temperature: float, block: int) -> tuple[Tensor, Tensor]:
    """exp(logit / temperature), 1 for the likeliest token, padded with 0 to whole blocks: [B, G × block] in
    float32 (float64 of logits in float64); and the sum of each block, float64 [B, G].

    Args:
        temperature: above 0.
        block: tokens of one.
    """
    if cpu.fits(logits_BV, block):
        return cpu.token_weights(logits_BV, temperature, block)
    rows, vocabulary = logits_BV.shape
    wide = torch.float64 if logits_BV.dtype == torch.float64 else torch.float32
    weights_BV = torch.empty((rows, vocabulary + -vocabulary % block), dtype=wide, device=logits_BV.device)
    weights_BV[:, vocabulary:] = 0
    # In place: what a vocabulary is wide is gone over often enough.
    tokens_BV = weights_BV[:, :vocabulary].copy_(logits_BV)
    if temperature != 1:
        tokens_BV.div_(temperature)
    tokens_BV.sub_(tokens_BV.amax(dim=-1, keepdim=True)).exp_()
    return weights_BV, block_sums(weights_BV, block)


def block_sums(weights_BV: Tensor, block: int) -> Tensor:
    """[B, G], float64."""
    return weights_BV.unflatten(-1, (-1, block)).sum(dim=-1).double()
