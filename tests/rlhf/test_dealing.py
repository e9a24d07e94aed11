"""Which samples go where, and which pools fit which nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmscale.config.rlhf_pools import PoolSection
from llmscale.parallel.layout import Layout
from llmscale.rlhf.learning import minibatches
from llmscale.rlhf.workers.group import deal, speaks
from llmscale.rlhf.workers.placement import Node, asks_of, shortage


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 6))
def test_each_sample_goes_to_one_replica_and_replicas_have_as_many(costs: list[int], replicas: int) -> None:
    dealt = deal(costs, replicas)
    assert sorted(place for places in dealt for place in places) == list(range(len(costs)))
    sizes = [len(places) for places in dealt]
    assert max(sizes) - min(sizes) <= 1 and all(places == sorted(places) for places in dealt)
    loads = [sum(costs[place] for place in places) for places in dealt]
    assert max(loads) - min(loads) <= max(costs, default=0) * 2


def test_one_rank_of_a_replica_speaks() -> None:
    layout = Layout(tensor=2, pipeline=2, data=3)
    speaking = [rank for rank in range(12) if speaks(layout, rank)]
    assert sorted(layout.coordinates(rank).data for rank in speaking) == [0, 1, 2]
    assert all(layout.coordinates(rank).pipeline == 1 for rank in speaking)


@given(st.integers(1, 50), st.integers(1, 8), st.integers(0, 5))
def test_minibatches_have_each_experience_once(count: int, parts: int, seed: int) -> None:
    found = minibatches(count, parts, seed)
    assert sorted(place for part in found for place in part) == list(range(count))
    assert found == minibatches(count, parts, seed)


def pools(**sizes: int) -> dict[str, PoolSection]:
    return {name: PoolSection(roles=["actor"], processes=size) for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("asked", "nodes", "fits"),
    [
        (pools(a=2, b=2), [Node("n", 4, 0)], True),
        (pools(a=2, b=3), [Node("n", 4, 0)], False),
        (pools(a=2, b=3), [Node("n", 4, 0), Node("m", 1, 0)], True),
        (pools(a=1), [], False),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(
    asked: dict[str, PoolSection], nodes: list[Node], fits: bool
) -> None:
    problem = shortage(asks_of(asked, 1, 0), nodes)
    assert (problem is None) == fits
    if problem is not None:
        assert "a (actor)" in problem and "rlhf.pools" in problem


def test_a_process_does_not_lie_on_two_nodes() -> None:
    halves = [Node("n", 3, 1), Node("m", 3, 1)]
    assert shortage(asks_of(pools(a=2), 3, 1), halves) is None
    problem = shortage(asks_of(pools(a=1), 4, 1), halves)
    assert problem is not None and "4 CPUs and 1 GPU" in problem
