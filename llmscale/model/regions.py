"""Boxes of tensors, and how a rank's local tensors map onto Hugging Face tensors.

A *box* is an axis-aligned block of a tensor: where it starts and how large it is. A *region* says that
a box of a local parameter is a box of a Hugging Face tensor of the true, unpadded shape. A *piece* is
a box of a named tensor together with the memory that holds it on this rank: what a checkpoint stores
and what a load fills.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Block of a tensor: `start[i] <= index[i] < start[i] + size[i]` in each dimension i."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def volume(self) -> int:
        volume = 1
        for size in self.size:
            volume *= size
        return volume

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, start + size) for start, size in zip(self.start, self.size))

    def shifted(self, offset: Sequence[int]) -> "Box":
        return Box(tuple(start + shift for start, shift in zip(self.start, offset)), self.size)

    def transposed(self) -> "Box":
        return Box(self.start[::-1], self.size[::-1])

    def intersection(self, other: "Box") -> "Box | None":
        """The common block, or None where there is none."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start))
        size = tuple(
            min(a + n, b + m) - s
            for a, n, b, m, s in zip(self.start, self.size, other.start, other.size, start)
        )
        return Box(start, size) if all(length > 0 for length in size) else None


@dataclass(frozen=True)
class Region:
    """`local` of this rank's parameter holds `box` of the Hugging Face tensor `name`."""

    name: str
    shape: tuple[int, ...]
    """True shape of the whole Hugging Face tensor."""
    local: Box
    box: Box
    transpose: bool = False
    """The Hugging Face tensor is stored the other way round (gpt2's Conv1D)."""

    def of_local(self, part: Box) -> Box:
        """The box of the Hugging Face tensor that the local box `part` (inside `local`) is."""
        inside = Box(tuple(p - s for p, s in zip(part.start, self.local.start)), part.size)
        return (inside.transposed() if self.transpose else inside).shifted(self.box.start)


@dataclass(frozen=True)
class Piece:
    """A box of the logical tensor `name`, held in this rank's memory.

    `data` has the box's shape and shares memory with what it describes: reading it saves, writing
    into it loads. It need not be contiguous.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the whole logical tensor."""
    start: tuple[int, ...]
    data: Tensor

    @property
    def box(self) -> Box:
        return Box(self.start, tuple(self.data.shape))


def flat_range_boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, Box]]:
    """The boxes that the flat range `start:stop` of a row-major tensor covers, each with its flat start.

    At most three for a matrix: the rest of a row, whole rows, the beginning of a row.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield start, Box((start,) * len(shape), (stop - start,) * len(shape))
        return
    row = 1
    for size in shape[1:]:
        row *= size
    first_whole, last_whole = -(-start // row), stop // row
    if first_whole > last_whole:
        yield from _within_row(shape, start // row, start, stop, row)
        return
    if start < first_whole * row:
        yield from _within_row(shape, first_whole - 1, start, first_whole * row, row)
    if first_whole < last_whole:
        yield (
            first_whole * row,
            Box((first_whole, *(0 for _ in shape[1:])), (last_whole - first_whole, *shape[1:])),
        )
    if last_whole * row < stop:
        yield from _within_row(shape, last_whole, last_whole * row, stop, row)


def _within_row(
    shape: Sequence[int], index: int, start: int, stop: int, row: int
) -> Iterator[tuple[int, Box]]:
    for flat, box in flat_range_boxes(shape[1:], start - index * row, stop - index * row):
        yield flat + index * row, Box((index, *box.start), (1, *box.size))


def pieces_of_range(
    flat: Tensor, shape: Sequence[int], start: int, regions: Sequence[Region], prefix: str = ""
) -> Iterator[Piece]:
    """Pieces of a local parameter of `shape`, of which `flat` holds the flat range from `start` on.

    What lies outside every region (vocabulary padding) is not part of any piece.
    """
    for position, box in flat_range_boxes(shape, start, start + flat.numel()):
        block = flat[position - start : position - start + box.volume].view(box.size)
        for region in regions:
            common = box.intersection(region.local)
            if common is None:
                continue
            part = block[common.shifted(tuple(-s for s in box.start)).slices]
            target = region.of_local(common)
            yield Piece(
                prefix + region.name, region.shape, target.start, part.t() if region.transpose else part
            )
