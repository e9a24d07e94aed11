"""The fingerprint: the same under every layout, another one for other weights, and unnoticed by training."""

import pytest
import torch

from llmscale.engine.fingerprint import TOLERANCES, Fingerprint
from llmscale.model.regions import Piece
from tests.engine.saved_states import VOCABULARY, batches, copies, make_engine, state_config, whole
from tests.ranks import run_ranks

LAYOUTS = ("tensor 2 x pipeline 2", "tensor 4, sequence", "data 2, ZeRO-3", "pipeline 2, interleaved")


def fingerprint_rank(_: int, layout: str, precision: str) -> Fingerprint | None:
    return make_engine(state_config(layout, "gpt2, tied", precision)).fingerprint()


@pytest.mark.parametrize(
    ("precision", "layouts"), [("fp32", LAYOUTS), ("fp64", LAYOUTS[:1]), ("bf16", LAYOUTS[1:2])]
)
def test_every_layout_gives_the_same(precision: str, layouts: tuple[str, ...]) -> None:
    [reference] = run_ranks(1, fingerprint_rank, "one rank", precision)
    assert reference.vocabulary_size == VOCABULARY
    for layout in layouts:
        world_size = state_config(layout).world_size
        found = run_ranks(world_size, fingerprint_rank, layout, precision)
        assert found == [found[0]] * world_size
        apart = max(reference.differences(found[0]).values())
        # A tenth: what is left of the tolerance is for other machines and deeper models.
        assert apart <= TOLERANCES[precision] * (1 if precision == "bf16" else 0.1), (layout, apart)


def watched_rank(_: int, layout: str, watched: bool) -> tuple[list[float], list[Piece], bool]:
    """Three steps with dropout, with or without a fingerprint after each; losses, all state, mode."""
    config = state_config(layout)
    config = config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.1})})
    engine, losses = make_engine(config), []
    for step in range(3):
        losses.append(engine.step(batches(config, engine.world, step)).loss)
        before = torch.get_rng_state(), engine.world.rng.get_states()
        if watched:
            engine.fingerprint()
        assert torch.equal(before[0], torch.get_rng_state())
        after = engine.world.rng.get_states()
        assert all(torch.equal(state, after[name]) for name, state in before[1].items())
    return losses, copies(engine.pieces_to_save()), engine.module.training


@pytest.mark.parametrize("layout", ["tensor 2 x pipeline 2", "data 2, ZeRO-3"])
def test_training_does_not_notice(layout: str) -> None:
    world_size = state_config(layout).world_size
    with_it, without = (run_ranks(world_size, watched_rank, layout, watched) for watched in (True, False))
    assert [losses for losses, *_ in with_it] == [losses for losses, *_ in without]
    expected = whole(pieces for _, pieces, _ in without)
    found = whole(pieces for _, pieces, _ in with_it)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(training for *_, training in with_it)


def altered_rank(_: int) -> dict[str, dict[str, float]]:
    """How far the fingerprint moves for changes of the weights that a sum or a norm alone would miss."""
    engine = make_engine(state_config("one rank"))
    reference = engine.fingerprint()
    assert reference is not None
    weights = {piece.name: piece.data for piece in engine.weight_pieces()}
    output = weights["lm_head.weight"]
    query, key = (weights[f"model.layers.1.self_attn.{kind}_proj.weight"] for kind in "qk")

    def moved(*rows: torch.Tensor) -> dict[str, float]:
        before = [row.clone() for row in rows]
        for row, value in zip(rows, reversed(before)):
            row.copy_(value)
        found = engine.fingerprint()
        for row, value in zip(rows, before):
            row.copy_(value)
        assert found is not None
        return reference.differences(found)

    found = {
        "two rows of the output": moved(output[100], output[101]),
        "queries and keys of a head": moved(query[:8], key[:8]),
    }
    assert reference == engine.fingerprint()
    return found


def test_other_weights_give_another_one() -> None:
    [found] = run_ranks(1, altered_rank)
    for change, apart in found.items():
        assert max(apart.values()) > 2 * TOLERANCES["fp32"], (change, apart)


def test_a_figure_that_is_not_a_number_is_infinitely_far() -> None:
    reference = Fingerprint("s", 8, 8, 2.0, 1.0, 3.0)
    assert reference.differences(Fingerprint("s", 8, 8, float("nan"), 1.0, 3.0))["loss"] == float("inf")
