"""Which token comes next: greedily, or drawn from the model's distribution, cut and sharpened.

Shapes: B rows, V vocabulary, G blocks of the vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from llmscale_kernels.sampling import block_sums, token_weights
from torch import Tensor

from llmscale.parallel.rng import derived_seed

UNIFORM_BITS = 40
BLOCK = 128
"""Tokens whose weights are summed up at once: most of a vocabulary is passed by in such steps."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a text goes on, and when it ends.

    Raises:
        ValueError: a number is outside its range.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token always (greedy)."""
    top_k: int | None = None
    """Only the k most likely tokens may come."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability may come (arXiv:1904.09751)."""
    seed: int = 0
    """Row number n of a batch draws as it would alone with `seed + n`."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end a text; without any only the number of tokens does."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}, must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, must be above 0 and at most 1")


class Drawn(NamedTuple):
    """What comes next in each row."""

    tokens_B: Tensor
    """int64."""
    log_probabilities_B: Tensor
    """Of each, float64, of all tokens at the temperature (greedy: at 1): what top-k and top-p have left out
    is counted in, as a model counts that is asked later what it thinks of the text."""


def draw(logits_BV: Tensor, options: SamplingOptions, uniforms: list[float]) -> Drawn:
    """
    Args:
        uniforms: of each row, in [0, 1): on it and on the row's own logits alone its token depends.
    """
    weights_BV, sums_BG = token_weights(logits_BV, options.temperature or 1.0, BLOCK)
    totals_B1 = sums_BG.sum(dim=-1, keepdim=True)
    if options.temperature == 0:
        tokens_B = logits_BV.argmax(dim=-1)
    else:
        draw_B = torch.tensor(uniforms, dtype=torch.float64, device=logits_BV.device)
        if options.top_k is None and options.top_p == 1:
            tokens_B = _found(weights_BV, sums_BG, draw_B)
        else:
            cut_BV = _padded(probabilities(logits_BV, options))
            tokens_B = _found(cut_BV, block_sums(cut_BV, BLOCK), draw_B)
    chosen_B1 = weights_BV.gather(1, tokens_B[:, None]).double()
    return Drawn(tokens_B, (chosen_B1.log() - totals_B1.log())[:, 0])


def probabilities(logits_BV: Tensor, options: SamplingOptions) -> Tensor:
    """What is drawn from, float64 [B, V]: temperature, then top-k, then top-p."""
    scaled_BV = logits_BV.double() / options.temperature
    if options.top_k is not None and options.top_k < scaled_BV.shape[-1]:
        least_B1 = scaled_BV.topk(options.top_k).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, float("-inf"))
    probability_BV = scaled_BV.softmax(dim=-1)
    if options.top_p < 1:
        sorted_BV, order_BV = probability_BV.sort(dim=-1, descending=True, stable=True)
        more_likely_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        kept_BV = sorted_BV.masked_fill(more_likely_BV >= options.top_p, 0.0)
        probability_BV = torch.zeros_like(probability_BV).scatter(-1, order_BV, kept_BV)
        probability_BV = probability_BV / probability_BV.sum(dim=-1, keepdim=True)
    return probability_BV


def uniform(seed: int, step: int) -> float:
    """In [0, 1), the same on every machine."""
    return (derived_seed(seed, "token", step) >> (63 - UNIFORM_BITS)) / 2**UNIFORM_BITS


def _padded(weights_BV: Tensor) -> Tensor:
    return F.pad(weights_BV, (0, -weights_BV.shape[-1] % BLOCK))


def _found(weights_BV: Tensor, sums_BG: Tensor, draw_B: Tensor) -> Tensor:
    """The first token of each row up to which more than the share `draw_B` of all weight lies, int64 [B]: one
    without weight never is.

    Args:
        sums_BG: of the weights of each block.
    """
    ends_BG = sums_BG.cumsum(dim=-1)
    wanted_B1 = draw_B[:, None] * ends_BG[:, -1:]
    block_B1 = torch.searchsorted(ends_BG, wanted_B1, right=True)
    sum_B1 = sums_BG.gather(1, block_B1)
    share_B1 = (wanted_B1 - ends_BG.gather(1, block_B1) + sum_B1) / sum_B1
    # Sums of a block and of its parts are rounded differently: it must not be left at either end.
    share_B1 = share_B1.clamp(0, 1 - 2.0**-UNIFORM_BITS)
    rows_B = torch.arange(len(weights_BV), device=weights_BV.device)
    parts_B = weights_BV.unflatten(-1, (-1, BLOCK))[rows_B, block_B1[:, 0]].double().cumsum(dim=-1)
    within_B1 = torch.searchsorted(parts_B, share_B1 * parts_B[:, -1:], right=True)
    return (block_B1 * BLOCK + within_B1)[:, 0]
