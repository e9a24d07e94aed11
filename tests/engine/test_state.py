"""Master weights and moments as pieces: every element once, under Hugging Face names and true shapes, and
the same tensors wherever they are loaded."""

import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config, ModelSection
from tests.engine.saved_states import (
    LAYOUTS,
    LENGTH,
    MODELS,
    VOCABULARY,
    State,
    load_rank,
    move_rank,
    pieces_of_configs,
    poisoned_rank,
    save_rank,
    state_config,
    whole,
)
from tests.peers import peer
from tests.ranks import run_ranks

KINDS = ("", "optimizer.exp_avg.", "optimizer.exp_avg_sq.")


def transformers_shapes(model: ModelSection) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the same architecture's state dict, each stored tensor once."""
    state = peer(model, VOCABULARY, LENGTH, "meta").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if model.tie_embeddings_or_default:
        shapes.pop("lm_head.weight", None)
    return shapes


def assert_all_of_model(tensors: dict[str, Tensor], config: Config) -> None:
    expected = transformers_shapes(config.model)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        kind + name: shape for kind in KINDS for name, shape in expected.items()
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.soak)])
def test_every_layout_saves_each_element_once(ranks: int, precision: str) -> None:
    """All families, all layouts of `ranks` ranks; fresh engines of the same seed hold the same weights."""
    configs = [
        config
        for layout in LAYOUTS
        for model in MODELS
        if (config := state_config(layout, model, precision)).world_size == ranks
    ]
    per_rank = run_ranks(ranks, pieces_of_configs, configs)
    for index, config in enumerate(configs):
        assert_all_of_model(whole([pieces[index] for pieces in per_rank]), config)


RING = [
    ("one rank", "fp32"),
    ("tensor 2", "bf16"),
    ("data 4, ZeRO-2", "fp32"),
    ("pipeline 2, interleaved", "fp32"),
    ("data 2, ZeRO-3", "bf16"),
    ("tensor 2 x pipeline 2", "fp32"),
    ("tensor 2 x data 2, ZeRO-3", "fp32"),
    ("pipeline 2 x data 2", "bf16"),
    ("tensor 4, sequence", "fp32"),
    ("data 2, ZeRO-1", "fp32"),
    ("one rank", "fp32"),
]


def state_of(states: list[State]) -> dict[str, Tensor]:
    assert len({tuple(state.counters.items()) for state in states}) == 1
    tensors = whole(state.pieces for state in states)
    replicas = whole((state.replicas for state in states), once=False)
    assert_equal(replicas, tensors)
    return tensors


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not different, f"{len(different)} of {len(expected)} differ: {different[:4]}"


@pytest.mark.parametrize("model", ["llama", "gpt2, tied"])
def test_around_a_ring_of_layouts(tmp_path: Path, model: str) -> None:
    """Each layout loads what the one before has saved, takes a step, and saves."""
    configs = [state_config(layout, model, precision) for layout, precision in RING]
    states = run_ranks(configs[0].world_size, save_rank, configs[0], tmp_path / "0")
    for number, config in enumerate(configs[1:], start=1):
        source, target = tmp_path / str(number - 1), tmp_path / str(number)
        moved = run_ranks(config.world_size, move_rank, config, source, target)
        loaded = [before for before, _ in moved]
        precisions = {configs[number - 1].train.precision, config.train.precision}
        assert_same_state(loaded, states, loss_within=1e-6 if precisions == {"fp32"} else 2e-3)
        states = [after for _, after in moved]
        assert states[0].counters["optimizer_steps"] == loaded[0].counters["optimizer_steps"] + 1


def assert_same_state(loaded: list[State], saved: list[State], loss_within: float) -> None:
    """`loss_within`: relative; the model must compute with what was loaded, in its own precision."""
    assert_equal(state_of(loaded), state_of(saved))
    assert loaded[0].counters == saved[0].counters
    assert loaded[0].loss == pytest.approx(saved[0].loss, rel=loss_within)


@pytest.mark.soak
@pytest.mark.parametrize("model", ["llama", "gpt2, tied"])
def test_every_ordered_pair_of_layouts(tmp_path: Path, model: str) -> None:
    """Loaded tensors are equal, and so is the next step's loss, to the rounding of another layout."""
    saved, first = {}, {}
    for layout in LAYOUTS:
        config = state_config(layout, model)
        saved[layout] = run_ranks(config.world_size, save_rank, config, tmp_path / layout)
    for layout in LAYOUTS:
        config = state_config(layout, model, seed=2)
        loaded = run_ranks(config.world_size, load_rank, config, tmp_path / layout)
        first[layout] = loaded[0][1]
    for source, target in permutations(LAYOUTS, 2):
        config = state_config(target, model, seed=2)
        loaded = run_ranks(config.world_size, load_rank, config, tmp_path / source)
        assert_same_state([state for state, _ in loaded], saved[source], loss_within=1e-6)
        assert loaded[0][1].loss == pytest.approx(first[source].loss, rel=1e-6), (source, target)


@pytest.mark.parametrize(
    "layout", ["data 2, ZeRO-1", "data 4, ZeRO-2", "data 2, ZeRO-3", "tensor 2 x pipeline 2"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_that_is_not_finite_changes_nothing(layout: str, precision: str) -> None:
    """One rank's NaN: all ranks leave the step out, weights and moments stay, and the next step is taken."""
    config = state_config(layout, precision=precision)
    ranks = run_ranks(config.world_size, poisoned_rank, config)
    for results, *_ in ranks:
        assert math.isfinite(results[1].loss)
        assert not math.isfinite(results[1].grad_norm)
        assert math.isfinite(results[2].grad_norm)
        assert math.isfinite(results[2].loss)
    before, after, beyond = (state_of([rank[place] for rank in ranks]) for place in (1, 2, 3))
    assert_equal(after, before)
    assert all(torch.isfinite(tensor).all() for tensor in beyond.values())
    assert not torch.equal(beyond["model.norm.weight"], before["model.norm.weight"])
    assert [ranks[0][place].counters["optimizer_steps"] for place in (1, 2, 3)] == [1, 1, 2]
