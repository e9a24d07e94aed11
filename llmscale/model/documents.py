"""Documents packed into rows: who may see whom, and where each ends.

Attention of a packed row is that of its documents apart, so each is attended to by itself.

Shapes: S tokens of a row, B rows, N query heads, K key-value heads, D head size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH_UNIT = 32
"""On CPUs torch makes and keeps a kernel for each length of attention, 3 MB in bf16: documents of all lengths
would fill the memory."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [s, b, N, D], keys [s, b, K, D], values [s, b, K, D]) → [s, b, N × D] of one document a row."""


@dataclass(frozen=True)
class Documents:
    """How each row is cut: `lengths[b]` of its documents, which follow each other and fill the row."""

    lengths: tuple[tuple[int, ...], ...]

    def attend(self, query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, attend: Attend) -> Tensor:
        """Each document's attention in its place: [S, B, N × D]."""
        rows: list[Tensor] = []
        for b, cuts in enumerate(self._cuts()):
            row = [tensor[:, b : b + 1] for tensor in (query_SBND, key_SBKD, value_SBKD)]
            rows.append(torch.cat([_attend_one(row, start, stop, attend) for start, stop in cuts]))
        return torch.cat(rows, dim=1)

    def _cuts(self) -> Iterator[list[tuple[int, int]]]:
        for lengths in self.lengths:
            ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
            yield list(zip([0, *ends], ends))


def _attend_one(row: Sequence[Tensor], start: int, stop: int, attend: Attend) -> Tensor:
    """One document's attention, with what follows it up to a multiple of `LENGTH_UNIT` tokens: attention
    looks back only, so the document does not see that, and what comes out for it is cut off."""
    length = -(-(stop - start) // LENGTH_UNIT) * LENGTH_UNIT
    parts = [tensor[start : start + length] for tensor in row]
    missing = length - len(parts[0])
    if missing:
        parts = [F.pad(part, (0, 0, 0, 0, 0, 0, 0, missing)) for part in parts]
    return attend(*parts)[: stop - start]
