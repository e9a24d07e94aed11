"""Documents packed into rows: who may see whom, and where each ends.

Attention of a packed row is that of its documents apart, so each is attended to by itself.

Shapes: S tokens of a row, B rows, N query heads, K key-value heads, D head size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [s, b, N, D], keys [s, b, K, D], values [s, b, K, D]) → [s, b, N × D] of one document a row."""


@dataclass(frozen=True)
class Documents:
    """How each row is cut: `lengths[b]` of its documents, which follow each other and fill the row."""

    lengths: tuple[tuple[int, ...], ...]

    def attend(self, query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, attend: Attend) -> Tensor:
        """Each document's attention in its place: [S, B, N × D]."""
        tensors = (query_SBND, key_SBKD, value_SBKD)
        rows = [
            torch.cat(
                [attend(*(tensor[start:stop, b : b + 1] for tensor in tensors)) for start, stop in cuts]
            )
            for b, cuts in enumerate(self._cuts())
        ]
        return torch.cat(rows, dim=1)

    def _cuts(self) -> Iterator[list[tuple[int, int]]]:
        for lengths in self.lengths:
            ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
            yield list(zip([0, *ends], ends))
