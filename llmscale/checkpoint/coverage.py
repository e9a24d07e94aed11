"""Box arithmetic over whole tensors: is every element there, and is it there once?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmscale.checkpoint.manifest import TensorEntry
from llmscale.model.regions import Box


@dataclass(frozen=True)
class Coverage:
    gaps: tuple[Box, ...]
    """Disjoint blocks that no box covers."""
    overlaps: tuple[Box, ...]
    """Boxes of which some element is covered by a box before them, too."""


def coverage(shape: Sequence[int], boxes: Iterable[Box]) -> Coverage:
    """Take the boxes out of the whole tensor one after the other and look at what remains.

    In order of their start, so that what remains stays a handful of blocks.
    """
    whole = Box((0,) * len(shape), tuple(shape))
    remaining = [whole] if whole.volume else []
    overlaps = []
    for box in sorted(boxes, key=lambda box: box.start):
        taken = 0
        after: list[Box] = []
        for block in remaining:
            common = block.intersection(box)
            if common is None:
                after.append(block)
            else:
                taken += common.volume
                after.extend(without(block, common))
        if taken < box.volume:
            overlaps.append(box)
        remaining = after
    return Coverage(tuple(remaining), tuple(overlaps))


def without(block: Box, hole: Box) -> list[Box]:
    """`block` minus `hole` (inside it), as disjoint blocks: two a dimension at most."""
    rest = []
    start, size = list(block.start), list(block.size)
    for axis in range(len(start)):
        before = hole.start[axis] - start[axis]
        after = start[axis] + size[axis] - hole.start[axis] - hole.size[axis]
        if before:
            rest.append(Box(tuple(start), (*size[:axis], before, *size[axis + 1 :])))
        if after:
            first = hole.start[axis] + hole.size[axis]
            rest.append(
                Box((*start[:axis], first, *start[axis + 1 :]), (*size[:axis], after, *size[axis + 1 :]))
            )
        start[axis], size[axis] = hole.start[axis], hole.size[axis]
    return rest


def stored_faults(tensors: dict[str, TensorEntry]) -> list[str]:
    """What is wrong with the stored boxes; nothing where each element of each tensor is stored once."""
    faults = []
    for name, tensor in tensors.items():
        found = coverage(tensor.shape, (Box(box.start, box.size) for box in tensor.boxes))
        if found.gaps:
            missing = sum(gap.volume for gap in found.gaps)
            faults.append(f"{name}: {missing} elements are in no box, first at {found.gaps[0].start}")
        if found.overlaps:
            faults.append(f"{name}: elements of the box at {found.overlaps[0].start} are stored twice")
    return faults
