"""Documents packed into rows: who may see whom, and where each ends.

Attention of a packed row is that of its documents apart, so each is attended to by itself; or with the
document that it goes on from.

Shapes: S tokens of a row, B rows, N query heads, K key-value heads, D head size.
"""

import itertools
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
    """How each row is cut."""

    lengths: tuple[tuple[int, ...], ...]
    """`lengths[b]` of a row's documents, which follow each other and fill it."""
    before: tuple[tuple[int, ...], ...] | None = None
    """See `Batch.document_before`."""

    def attend(self, query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, attend: Attend) -> Tensor:
        """Each document's attention in its place: [S, B, N × D]."""
        rows: list[Tensor] = []
        for b, cuts in enumerate(self._cuts()):
            row = [tensor[:, b : b + 1] for tensor in (query_SBND, key_SBKD, value_SBKD)]
            rows.append(torch.cat([_attend_one(row, before, own, attend) for before, own in cuts]))
        return torch.cat(rows, dim=1)

    def _cuts(self) -> Iterator[list[tuple[slice, slice]]]:
        """Of each document what it goes on from, and where it is."""
        for b, lengths in enumerate(self.lengths):
            ends = list(itertools.accumulate(lengths))
            beginning, cuts = slice(0), list[tuple[slice, slice]]()
            for number, end in enumerate(ends):
                own = slice(end - lengths[number], end)
                goes_on = self.before is not None and self.before[b][number] > 0
                cuts.append((beginning if goes_on else slice(0), own))
                beginning = beginning if goes_on else own
            yield cuts


def _attend_one(row: Sequence[Tensor], before: slice, own: slice, attend: Attend) -> Tensor:
    """One document's attention, with what it goes on from, and with something behind it up to a multiple of
    `LENGTH_UNIT` tokens: attention looks back only, so the document does not see that, and what comes out for
    either is cut off."""
    first, stop = before.stop - before.start if before.stop else 0, own.stop
    length = -(-(first + stop - own.start) // LENGTH_UNIT) * LENGTH_UNIT
    parts = [tensor[own.start : own.start + length - first] for tensor in row]
    if first:
        parts = [torch.cat((tensor[before], part)) for tensor, part in zip(row, parts)]
    missing = length - len(parts[0])
    if missing:
        parts = [F.pad(part, (0, 0, 0, 0, 0, 0, 0, missing)) for part in parts]
    return attend(*parts)[first : first + stop - own.start]
