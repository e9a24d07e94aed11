"""Logits of the tokens that count only: loss and gradient are those of all logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llmscale.data.row import LENGTH_UNIT, Row, batch_of
from llmscale.engine.engine import Engine
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.parity import parity_config
from tests.ranks import run_ranks

LENGTH, VOCABULARY = 24, 1000
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "sequence parallel, pipeline": {"tensor": 2, "sequence": True, "pipeline": 2},
    "zero 3": {"data": 2, "zero": 3},
}


def row_of(counted: range, seed: int) -> Row:
    """Of random tokens."""
    tokens = torch.randint(0, VOCABULARY, (LENGTH + 1,), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([float(place in counted) for place in range(LENGTH)])
    return Row(tokens[:-1], tokens[1:], mask, torch.arange(LENGTH))


@pytest.mark.parametrize(("counted", "computed"), [(0, 8), (1, 8), (8, 8), (9, 16), (17, None), (24, None)])
def test_which_logits_are_computed(counted: int, computed: int | None) -> None:
    """A whole number of units of them, none of them twice; None: all."""
    found_C = batch_of([row_of(range(LENGTH - counted, LENGTH), 0)]).counted_C
    if computed is None or found_C is None:
        assert computed is None and found_C is None
        return
    assert len(found_C) == computed == len(found_C.unique()) and computed % LENGTH_UNIT == 0
    assert set(range(LENGTH - counted, LENGTH)) <= set(found_C.tolist())


def on_rank(_: int, layout: dict[str, Any]) -> list[tuple[float, float]]:
    """Loss and norm of the gradient, with the logits of some tokens and with those of all."""
    config = parity_config(**layout)
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    replica = world.coordinates.data
    # Rows of a batch are neighbours in memory; a microbatch in which nothing counts is one, too.
    counted = [(range(3, 9), range(20, 24)), (range(0), range(0))]
    some = [
        batch_of([row_of(part, 10 * number + place + 100 * replica) for place, part in enumerate(parts)])
        for number, parts in enumerate(counted)
    ]
    found: list[tuple[float, float]] = []
    for batches in (some, [replace(batch, counted_C=None) for batch in some]):
        engine = Engine(config, world, VOCABULARY, CausalLM())
        result = engine.step(batches)
        found.append((result.loss, result.grad_norm))
        engine.close()
    assert all(batch.counted_C is not None for batch in some)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_loss_and_gradient(layout: str) -> None:
    options = LAYOUTS[layout]
    [some, every] = run_ranks(parity_config(**options).world_size, on_rank, options)[0]
    assert some == pytest.approx(every, rel=1e-6)
    assert every[1] > 0.1
