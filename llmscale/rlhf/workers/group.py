"""A role as the driver sees it: samples go out by data-parallel rank, and what was made of them comes back in
their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llmscale.parallel.layout import Layout
from llmscale.rlhf.workers.calls import Calls
from llmscale.rlhf.workers.dealing import Cost, Dealt, deal
from llmscale.rlhf.workers.pool import Pool

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pending(Generic[Result]):
    """A call under way whose samples were dealt out."""

    calls: Calls
    layout: Layout
    dealt: Dealt

    def results(self, seconds: float | None = None) -> list[Result]:
        """One a sample, in their order.

        Raises:
            WorkerLost, WorkerFailed: see `Calls.results`.
        """
        answers = self.calls.results(seconds)
        found: dict[int, Result] = {}
        for rank, answer in enumerate(answers):
            if speaks(self.layout, rank):
                places = self.dealt[self.layout.coordinates(rank).data]
                found |= dict(zip(places, answer, strict=True))
        return [found[place] for place in range(len(found))]


@dataclass(frozen=True)
class Group:
    """A role in a pool.

    Args:
        layout: of the role's model over all processes of the pool.
    """

    pool: Pool
    role: str
    layout: Layout

    def submit(
        self, method: str, samples: Sequence[Any], *shared: Any, costs: Sequence[Cost] | None = None
    ) -> Pending[Any]:
        """Begin a call for samples, each of which one replica gets; all its ranks get the same ones.

        Args:
            shared: further arguments, the same for all.
            costs: of each sample, so that replicas have as much to do; None: all cost the same.
        """
        dealt = self._deal(samples, costs)
        return Pending(self._call(method, samples, dealt, shared), self.layout, dealt)

    def give(
        self, method: str, samples: Sequence[Any], *shared: Any, costs: Sequence[Cost] | None = None
    ) -> Calls:
        """As `submit`, where the answer is not of samples: each rank's is told."""
        return self._call(method, samples, self._deal(samples, costs), shared)

    def _deal(self, samples: Sequence[Any], costs: Sequence[Cost] | None) -> Dealt:
        return deal(costs or [Cost()] * len(samples), self.layout.data)

    def _call(self, method: str, samples: Sequence[Any], dealt: Dealt, shared: tuple[Any, ...]) -> Calls:
        shares = [[samples[place] for place in places] for places in dealt]
        ranks = range(self.layout.world_size)
        arguments = [(shares[self.layout.coordinates(rank).data], *shared) for rank in ranks]
        return self.pool.call(self.role, method, arguments)

    def tell(self, method: str, *arguments: Any) -> Calls:
        """Begin a call with the same arguments on all ranks."""
        return self.pool.call(self.role, method, [arguments] * self.layout.world_size)


def speaks(layout: Layout, rank: int) -> bool:
    """What a replica has found is told by the first tensor rank of its last stage."""
    place = layout.coordinates(rank)
    return place.tensor == place.context == 0 and place.pipeline == layout.pipeline - 1
