"""The arithmetic of a world: which rank is where, and which ranks form each group. No torch.

Ranks count through the axes with `tensor` fastest, then `context`, `data`, `pipeline` slowest, so that
the ranks that talk most sit side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from llmscale.config.schema import ParallelSection

AXES = ("tensor", "context", "data", "pipeline")
"""Fastest first."""


@dataclass(frozen=True)
class Coordinates:
    """Where a rank stands along each axis."""

    tensor: int
    context: int
    data: int
    pipeline: int


@dataclass(frozen=True)
class Layout:
    """Sizes of the axes, and how the stages are cut."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    expert: int = 1
    sequence: bool = False
    interleave: int = 1

    @classmethod
    def of(cls, parallel: ParallelSection, world_size: int) -> "Layout":
        """The layout that `parallel` gives `world_size` ranks.

        Raises:
            ValueError: where world_size is no multiple of tensor × pipeline × context.
        """
        model_ranks = parallel.tensor * parallel.pipeline * parallel.context
        if world_size % model_ranks:
            raise ValueError(
                f"{world_size} ranks are no multiple of tensor × pipeline × context = {model_ranks}"
            )
        return cls(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            data=world_size // model_ranks,
            context=parallel.context,
            expert=parallel.expert,
            sequence=parallel.sequence,
            interleave=parallel.interleave,
        )

    @property
    def world_size(self) -> int:
        return self.tensor * self.context * self.data * self.pipeline

    def size(self, axis: str) -> int:
        return int(getattr(self, axis))

    def coordinates(self, rank: int) -> Coordinates:
        place: dict[str, int] = {}
        for axis in AXES:
            rank, place[axis] = divmod(rank, self.size(axis))
        return Coordinates(**place)

    def rank(self, coordinates: Coordinates) -> int:
        rank = 0
        for axis in reversed(AXES):
            rank = rank * self.size(axis) + int(getattr(coordinates, axis))
        return rank

    def groups(self, axes: Sequence[str]) -> list[list[int]]:
        """The ranks that differ only along `axes`, as one sorted list a group."""
        others = [axis for axis in AXES if axis not in axes]
        found: list[list[int]] = []
        for fixed in product(*(range(self.size(axis)) for axis in others)):
            members: list[int] = []
            for moving in product(*(range(self.size(axis)) for axis in axes)):
                place = dict(zip(others, fixed)) | dict(zip(axes, moving))
                members.append(self.rank(Coordinates(**place)))
            found.append(sorted(members))
        return sorted(found)

    def describe(self) -> dict[str, int | bool]:
        """What a checkpoint writes down about the layout that made it."""
        return {
            "tensor": self.tensor,
            "pipeline": self.pipeline,
            "data": self.data,
            "context": self.context,
            "expert": self.expert,
            "sequence": self.sequence,
            "interleave": self.interleave,
        }
