"""The memory formula: what it must do when one thing changes, and known tables."""

import pytest
import yaml

from llmscale.config.presets import load_preset
from llmscale.config.schema import Config
from llmscale.plan.activations import activation_bytes, bubble, chunks_in_flight, layer_elements_per_token
from llmscale.plan.devices import GPUS, device_named
from llmscale.plan.memory import fullest_rank, rank_memory
from llmscale.plan.neighbours import what_fits
from llmscale.plan.speed import amounts, step_seconds

VOCABULARY = 8192


def config(**sections: dict[str, object]) -> Config:
    """Four data-parallel ranks of a small Llama, changed by sections."""
    tree: dict[str, dict[str, object]] = {
        "model": load_preset("tiny").model_dump(),
        "data": {"train": ["corpus"]},
        "train": {"global_batch_size": 32, "micro_batch_size": 4, "precision": "bf16"},
        "cluster": {"processes_per_node": 4},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return Config.model_validate(tree)


def test_states_under_zero() -> None:
    """Bytes a parameter on 4 data-parallel ranks: weights, gradients, fp32 weights and moments."""
    count = 7_145_728
    for stage, weights, gradients in ((1, 2, 4), (2, 2, 1), (3, 0.5, 1)):
        memory = rank_memory(config(zero={"stage": stage}), VOCABULARY, 0)
        assert (memory.weights, memory.gradients) == (weights * count, gradients * count)
        assert memory.optimizer == 12 * count / 4
    memory = rank_memory(config(train={"precision": "fp32"}), VOCABULARY, 0)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * count, 4 * count, 12 * count / 4)
    pulled = rank_memory(config(optimizer={"distance_penalty": 0.1}), VOCABULARY, 0)
    assert pulled.optimizer == 16 * count / 4, "the starting weights are kept too"


def test_offloaded_states_are_in_main_memory() -> None:
    here = rank_memory(config(zero={"stage": 3}), VOCABULARY, 0)
    offload = {"optimizer": "cpu", "parameters": "cpu"}
    away = rank_memory(config(zero={"stage": 3, "offload": offload}), VOCABULARY, 0)
    assert away.weights == away.optimizer == 0
    assert away.host >= here.weights + here.optimizer
    assert away.total < here.total


def test_tensor_ranks_share_all_but_norms() -> None:
    """Without sequence parallelism the hidden states stay whole; with it nothing does."""
    alone, split = (
        rank_memory(config(parallel=parallel), VOCABULARY, 0)
        for parallel in ({"tensor": 1}, {"tensor": 4, "sequence": True})
    )
    assert split.logits < alone.logits / 3.5
    assert split.activations == alone.activations / 4
    whole_hidden = rank_memory(config(parallel={"tensor": 4}), VOCABULARY, 0)
    assert alone.activations / 4 < whole_hidden.activations < alone.activations


@pytest.mark.parametrize(
    ("count", "pipeline", "interleave", "in_flight"),
    [
        (8, 1, 1, [1]),
        (8, 4, 1, [4, 3, 2, 1]),
        (2, 4, 1, [2, 2, 2, 1]),
        (8, 4, 2, [11, 9, 7, 5]),
        (4, 4, 2, [8, 8, 7, 5]),
    ],
)
def test_in_flight(count: int, pipeline: int, interleave: int, in_flight: list[int]) -> None:
    assert [chunks_in_flight(count, pipeline, interleave, stage) for stage in range(pipeline)] == in_flight


@pytest.mark.parametrize(
    ("count", "pipeline", "interleave"),
    [(1, 1, 1), (8, 2, 1), (3, 2, 1), (4, 4, 1), (8, 2, 2), (4, 4, 2), (8, 2, 4)],
)
def test_in_flight_against_a_played_schedule(count: int, pipeline: int, interleave: int) -> None:
    """1F1B played out: a stage does its warm-up forwards, then one forward, one backward."""
    for stage in range(pipeline):
        total = count * interleave
        ahead = pipeline - stage - 1
        warmup = min(total, ahead if interleave == 1 else 2 * ahead + (interleave - 1) * pipeline)
        order = [1] * warmup + [1, -1] * (total - warmup) + [-1] * warmup
        held = [sum(order[: end + 1]) for end in range(len(order))]
        assert held[-1] == 0
        assert max(held) == chunks_in_flight(count, pipeline, interleave, stage)


def test_bubble() -> None:
    assert bubble(8, 1, 1) == 0
    assert bubble(1, 4, 1) == 3 / 4
    assert bubble(8, 4, 1) == 3 / 11
    assert bubble(8, 4, 2) == pytest.approx(1.5 / 9.5)


def test_recomputation_keeps_layer_inputs_and_one_layer() -> None:
    """The one layer takes the place of the logits, which are gone by then."""
    tokens, layers, hidden, width = 4 * 256, 4, 256, 2
    layer = layer_elements_per_token(config()) * tokens * width
    recomputed = config(train={"recompute": "full"})
    inputs = layers * tokens * hidden * width
    assert activation_bytes(recomputed, 0, width, logits=0) == inputs + layer
    assert rank_memory(recomputed, 100, 0).activations < inputs + layer
    assert rank_memory(recomputed, 500_000, 0).activations == inputs
    assert rank_memory(config(), VOCABULARY, 0).activations > layers * layer


def test_fullest_stage_is_told() -> None:
    """The first stage holds most microbatches; the last one the logits, which win for a large vocabulary."""
    layout: dict[str, object] = {"pipeline": 4}
    assert fullest_rank(config(parallel=layout, train={"sequence_length": 1024}), 256)[0] == 0
    assert fullest_rank(config(parallel=layout), 500_000)[0] == 3


def test_what_fits_fits() -> None:
    """70B on two nodes of H100 cannot fit; what is suggested for it does, and is a valid config."""
    tree = {
        "model": load_preset("llama3_70b").model_dump(),
        "data": {"train": ["corpus"]},
        "train": {"global_batch_size": 256, "micro_batch_size": 1, "sequence_length": 8192},
        "parallel": {"tensor": 8},
        "cluster": {"nodes": 2, "processes_per_node": 8},
    }
    large, memory = Config.model_validate(tree), GPUS["H100"].memory
    assert fullest_rank(large, 128256)[1].total > memory
    found = what_fits(large, 128256, memory)
    assert found
    for overrides in found:
        changed = {name: dict(section) for name, section in tree.items()}
        for override in overrides:
            key, value = override.split("=")
            section, name = key.split(".")
            changed[section][name] = yaml.safe_load(value)
        assert fullest_rank(Config.model_validate(changed), 128256)[1].total <= memory


def test_small_memory_is_met_without_more_machines() -> None:
    small = config(train={"micro_batch_size": 8})
    needed = fullest_rank(small, VOCABULARY)[1].total
    assert all(
        "nodes" not in line for found in what_fits(small, VOCABULARY, needed * 3 // 4) for line in found
    )
    assert what_fits(small, VOCABULARY, 1000) == []


def test_amounts_and_time() -> None:
    wanted = amounts(config(train={"steps": 10}), VOCABULARY)
    assert (wanted.tokens_per_step, wanted.tokens) == (32 * 256, 10 * 32 * 256)
    assert wanted.checkpoint_bytes == 12 * 7_145_728
    seconds = step_seconds(config(), wanted, peak_flops=1e12, utilisation=0.5)
    assert seconds == pytest.approx(wanted.tokens_per_step * wanted.flops_per_token / (4 * 0.5e12))
    again = step_seconds(config(train={"recompute": "full"}), wanted, peak_flops=1e12, utilisation=0.5)
    assert again == pytest.approx(seconds * 4 / 3)


def test_devices() -> None:
    assert device_named("h100", 8) is GPUS["H100"]
    one, four = device_named("cpu", 1), device_named("cpu", 4)
    assert 0 < four.memory < one.memory / 4
