"""Which samples go where, and which pools fit which nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmscale.config.rlhf_pools import PoolSection
from llmscale.parallel.layout import Layout
from llmscale.rlhf.learning import minibatches
from llmscale.rlhf.workers.dealing import Cost, deal
from llmscale.rlhf.workers.group import speaks
from llmscale.rlhf.workers.placement import Node, asks_of, shortage


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 6))
def test_each_sample_goes_to_one_replica_and_replicas_have_as_much(costs: list[int], replicas: int) -> None:
    dealt = deal([Cost(cost) for cost in costs], replicas)
    assert sorted(place for places in dealt for place in places) == list(range(len(costs)))
    assert all(places == sorted(places) for places in dealt)
    loads = [sum(costs[place] for place in places) for places in dealt]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(st.integers(0, 40), st.integers(1, 6))
def test_of_equal_samples_replicas_have_as_many(count: int, replicas: int) -> None:
    sizes = [len(places) for places in deal([Cost()] * count, replicas)]
    assert sum(sizes) == count and max(sizes) - min(sizes) <= 1


@given(
    st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(1, 50), min_size=1, max_size=8)), min_size=1),
    st.integers(1, 6),
)
def test_what_samples_share_never_makes_the_dearest_replica_dearer(
    groups: list[tuple[int, list[int]]], replicas: int
) -> None:
    costs = [Cost(shared + own, shared, key) for key, (shared, owns) in enumerate(groups) for own in owns]
    dealt = deal(costs, replicas)
    assert sorted(place for places in dealt for place in places) == list(range(len(costs)))
    apart = deal([Cost(cost.whole) for cost in costs], replicas)
    assert dearest(costs, dealt) <= dearest(costs, apart)


def dearest(costs: list[Cost], dealt: list[list[int]]) -> int:
    loads: list[int] = []
    for places in dealt:
        prompts = {costs[place].key: costs[place].shared for place in places}
        loads.append(
            sum(costs[place].whole - costs[place].shared for place in places) + sum(prompts.values())
        )
    return max(loads)


def test_whole_groups_go_out_where_that_is_cheapest_and_parts_of_them_else() -> None:
    """Two prompts of 100 tokens with four answers of 10 each: for two replicas, for eight, for three."""
    costs = [Cost(110, 100, number // 4) for number in range(8)]
    assert deal(costs, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [len(places) for places in deal(costs, 8)] == [1] * 8
    assert sorted(deal(costs, 4)) == [[0, 1], [2, 3], [4, 5], [6, 7]]


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
