"""Which replica gets which samples."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of a sample, in any unit."""

    whole: int = 1
    shared: int = 0
    """Of that, what samples with the same key cost a replica together only once."""
    key: int = 0


Dealt = list[list[int]]
"""Of each replica the places of its samples, in rising order."""


def deal(costs: Sequence[Cost], replicas: int) -> Dealt:
    """Each sample to one replica, so that the one that has most to do has as little as can be.

    Samples that share something go together, in as many parts of a size as that takes: whole groups cost
    least in all, but may leave replicas without any.
    """
    ways = [_in_parts(costs, replicas, size) for size in _sizes(costs)]
    return min(ways, key=lambda dealt: max(_load(costs, places) for places in dealt))


def _sizes(costs: Sequence[Cost]) -> Iterator[int]:
    """Of parts: the largest group whole, then halves of it, down to samples by themselves."""
    largest = max((len(places) for places in _groups(costs)), default=1)
    size = largest if any(cost.shared for cost in costs) else 1
    while size > 1:
        yield size
        size = -(-size // 2)
    yield 1


def _groups(costs: Sequence[Cost]) -> list[list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for place, cost in enumerate(costs):
        found[cost.key].append(place)
    return list(found.values())


def _in_parts(costs: Sequence[Cost], replicas: int, size: int) -> Dealt:
    """The dearest part first, each to whom has least to do: within 4/3 of the best (Graham 1969)."""
    groups = _groups(costs)
    parts = [places[start : start + size] for places in groups for start in range(0, len(places), size)]
    loads = [(0, replica) for replica in range(replicas)]
    dealt: Dealt = [[] for _ in range(replicas)]
    for part in sorted(parts, key=lambda part: (-_load(costs, part), part)):
        load, replica = min(loads)
        loads[replica] = (load + _load(costs, part), replica)
        dealt[replica].extend(part)
    return [sorted(places) for places in dealt]


def _load(costs: Sequence[Cost], places: Sequence[int]) -> int:
    own = sum(costs[place].whole - costs[place].shared for place in places)
    return own + sum({costs[place].key: costs[place].shared for place in places}.values())
