"""Which token comes next: greedily, or drawn from the model's distribution, cut and sharpened.

Shapes: B rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmscale.parallel.rng import derived_seed

UNIFORM_BITS = 40


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


def next_tokens(logits_BV: Tensor, options: SamplingOptions, step: int) -> Tensor:
    """The token that each row goes on with, int64 [B].

    A draw depends on the logits, the seed, the row's number and `step`, and on nothing that ran before.
    """
    if options.temperature == 0:
        return logits_BV.argmax(dim=-1)
    cumulative_BV = probabilities(logits_BV, options).cumsum(dim=-1)
    draws = [uniform(options.seed + row, step) for row in range(len(logits_BV))]
    draw_B1 = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)[:, None]
    # The first token whose cumulative probability is above the draw: one of probability 0 never is.
    return torch.searchsorted(cumulative_BV, draw_B1 * cumulative_BV[:, -1:], right=True)[:, 0]


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
