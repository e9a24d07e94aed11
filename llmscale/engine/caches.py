"""The key-value caches of all layers of this rank, which have the same rows.

Shapes: B rows, T places of a row.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmscale.model.attention import SelfAttention
from llmscale.model.cache import Beginnings, KeyValueCache, NextTokens
from llmscale.model.language_model import LanguageModel


class Caches:
    """
    Args:
        caches: of the layers.
        chunk: one of theirs.
    """

    def __init__(self, caches: Sequence[KeyValueCache], chunk: LanguageModel) -> None:
        self._caches = caches
        self._device = chunk.world.device
        self._first, self._window = chunk.first_position, chunk.model_section.sliding_window

    def begin(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """What comes are prompts, and `rows` begin with those of these numbers."""
        self._expect(Beginnings(*(torch.tensor(places, device=self._device) for places in (rows, prompts))))

    def step(self, positions_B: Tensor, longest: int) -> None:
        """What comes is one token for each row, at these positions; `longest` is the last of them."""
        rows_B = torch.arange(len(positions_B), device=self._device)
        places_B, in_use = positions_B + self._first, self._first + longest + 1
        self._expect(NextTokens(rows_B, places_B, self._first, self._window, in_use))

    def move(self, rows: Sequence[int], targets: Sequence[int]) -> None:
        if rows:
            indices = [torch.tensor(places, device=self._device) for places in (rows, targets)]
            for cache in self._caches:
                cache.move(*indices)

    def _expect(self, coming: Beginnings | NextTokens) -> None:
        for cache in self._caches:
            cache.coming = coming


@contextlib.contextmanager
def opened_caches(chunks: Sequence[LanguageModel], rows: int, places: int) -> Iterator[Caches]:
    """A cache in every layer, and dropout off; afterwards all as it was.

    Args:
        places: tokens of a row, without a prefix.
    """
    modes = [chunk.training for chunk in chunks]
    attentions: list[SelfAttention] = []
    for chunk in chunks:
        chunk.eval()
        for attention in (module for module in chunk.modules() if isinstance(module, SelfAttention)):
            shape = (rows, attention.kv_heads, chunk.first_position + places, attention.head_size)
            attention.cache = KeyValueCache(shape, chunk.config.params_dtype, chunk.world.device)
            attentions.append(attention)
    try:
        yield Caches([one.cache for one in attentions if one.cache is not None], chunks[0])
    finally:
        for chunk, mode in zip(chunks, modes):
            chunk.train(mode)
        for attention in attentions:
            attention.cache = None
