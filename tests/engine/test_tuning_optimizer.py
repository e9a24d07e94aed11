"""Learning rates by depth, gradual unfreezing and the pull towards the starting weights: each update is that
of a slow float64 reference, under every way in which ZeRO holds the masters."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.engine.engine import Engine
from llmscale.engine.learning_rate import learning_rate
from llmscale.model.build import build_model
from llmscale.model.regions import Piece
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.engine.saved_states import VOCABULARY, batches, copies, make_engine, state_config
from tests.ranks import run_ranks

STEPS = 5
LAYERS = 4
TUNING = {"layer_decay": 0.5, "unfreeze_every": 1, "distance_penalty": 40.0}
"""With a learning rate of 1e-3 each step takes back a twenty-fifth of the way from the start."""
ROUNDING = {"fp32": 1e-6, "bf16": 1e-6, "fp64": 1e-13}
"""Of the masters, which bf16 has in fp32, relative to the largest weight."""


def tuning_config(layout: str, model: str, precision: str, **changes: Any) -> Config:
    config = state_config(layout, model, precision)
    zero = config.zero.model_copy(update=changes.pop("zero", {}))
    optimizer = config.optimizer.model_copy(update=changes)
    return config.model_copy(update={"optimizer": optimizer, "zero": zero})


def rate_scale(name: str, tied: bool, step: int) -> float:
    """Told from the Hugging Face name alone: `layer_decay` and `unfreeze_every` as they are documented."""
    found = re.search(r"(?:layers|h)\.(\d+)\.", name)
    if found:
        distance = LAYERS - int(found[1])
    else:
        is_output = re.match(r"(model\.norm|transformer\.ln_f|lm_head)", name) is not None
        distance = 0 if is_output and not (tied and "lm_head" in name) else LAYERS + 1
    return 0.0 if step <= distance - 1 else 0.5**distance


def reference_update(
    config: Config, step: int, scale: float, weight: Tensor, start: Tensor, moments: tuple[Tensor, Tensor]
) -> Tensor:
    """AdamW with both pulls, in float64 from the moments after the step."""
    options = config.optimizer
    lr = learning_rate(options, config.train.steps, step) * scale
    first, second = (moment.double() for moment in moments)
    weight, start = weight.double(), start.double()
    weight = weight - lr * options.distance_penalty * (weight - start)
    decay = options.weight_decay if weight.dim() > 1 else 0.0
    weight = weight - lr * decay * weight
    first, second = first / (1 - options.betas[0] ** step), second / (1 - options.betas[1] ** step)
    return weight - lr * first / (second.sqrt() + options.epsilon)


def live_weights(engine: Engine) -> dict[str, Tensor]:
    """What the model computes with, on this rank."""
    with engine.whole_chunks():
        return {name: p.detach().clone() for name, p in engine.parameters.items()}


def by_place(pieces: list[Piece]) -> dict[tuple[str, tuple[int, ...]], Tensor]:
    return {(piece.name, piece.start): piece.data for piece in copies(pieces)}


def updates_on_rank(_rank: int, configs: list[Config]) -> list[dict[str, float]]:
    """Of each config: the largest error of an update, how far weights were pulled, what moved unreached."""
    found = []
    for config in configs:
        engine = make_engine(config)
        tied = config.model.tie_embeddings_or_default
        worst = pulled = 0.0
        moved = frozen = 0
        for step in range(1, STEPS + 1):
            before, live_before = by_place(engine.pieces_to_save()), live_weights(engine)
            engine.step(batches(config, engine.world, step))
            after, live_after = by_place(engine.pieces_to_save()), live_weights(engine)
            for (name, place), weight in before.items():
                if name.startswith("optimizer."):
                    continue
                scale = rate_scale(name, tied, step)
                if scale == 0:
                    frozen += 1
                    moved += not same_bits(weight, after[name, place])
                start = before[f"optimizer.start.{name}", place]
                assert same_bits(start, after[f"optimizer.start.{name}", place])
                moments = tuple(after[f"optimizer.{key}.{name}", place] for key in ("exp_avg", "exp_avg_sq"))
                expected = reference_update(config, step, scale, weight, start, moments)  # pyright: ignore[reportArgumentType]
                largest = float(weight.abs().max()) or 1.0
                worst = max(worst, float((after[name, place].double() - expected).abs().max()) / largest)
                pulled = max(pulled, float((weight - start).abs().max()) / largest)
            for name, weight in live_before.items():
                declaration = engine.declarations[name]
                if all(rate_scale(one, tied, step) == 0 for one in declaration.names):
                    frozen += 1
                    moved += not same_bits(weight, live_after[name])
        found.append({"worst": worst, "pulled": pulled, "moved": moved, "frozen": frozen})
        engine.close()
        engine.world.close()
    return found


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


CONFIGS = {
    1: [
        tuning_config("one rank", "llama", "fp32", **TUNING),
        tuning_config("one rank", "gpt2, tied", "bf16", **TUNING),
        tuning_config("one rank", "llama, tied", "fp64", **TUNING),
    ],
    2: [
        tuning_config("data 2, ZeRO-1", "llama", "bf16", **TUNING),
        tuning_config("data 2, ZeRO-1", "llama", "fp32", **TUNING),
        tuning_config("data 2, ZeRO-1", "llama", "bf16", zero={"stage": 2}, **TUNING),
        tuning_config("data 2, ZeRO-3", "llama", "fp32", **TUNING),
        tuning_config("data 2, ZeRO-3", "gpt2, tied", "bf16", **TUNING),
        tuning_config("pipeline 2", "llama, tied", "bf16", **TUNING),
        tuning_config("pipeline 2, interleaved", "llama", "fp32", **TUNING),
        tuning_config("tensor 2", "llama", "bf16", **TUNING),
    ],
}


@pytest.mark.parametrize("ranks", CONFIGS)
def test_each_update_is_the_reference(ranks: int) -> None:
    """And what is not reached yet moves by no bit, neither its masters nor what the model computes with."""
    configs = CONFIGS[ranks]
    for results in run_ranks(ranks, updates_on_rank, configs):
        for config, found in zip(configs, results):
            assert found["worst"] <= ROUNDING[config.train.precision], (config.parallel, config.zero, found)
            assert found["pulled"] > 1e-3, "a start that is never left would prove little"
            assert found["moved"] == 0 and found["frozen"] > 0, found


def plain_training(_rank: int, config: Config) -> dict[str, Tensor]:
    """The same training without engine, ZeRO or torch's optimizer: weights by local name."""
    world = World(Layout(), torch.device("cpu"))
    objective, options = CausalLM(), config.optimizer
    with world.active():
        (chunk,) = build_model(config.model, config.train, VOCABULARY, world)
        weights = dict(chunk.named_parameters())
        starts = {name: weight.detach().clone() for name, weight in weights.items()}
        first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for step in range(1, STEPS + 1):
            parts = batches(config, world, step)
            losses = [
                objective.loss_sum(chunk, chunk(part.tokens_BS, part.position_ids_BS), part) for part in parts
            ]
            total = torch.stack(losses).sum() / sum(objective.count(part) for part in parts)
            gradients = torch.autograd.grad(total, list(weights.values()))
            for (name, weight), gradient in zip(weights.items(), gradients):
                first[name] = options.betas[0] * first[name] + (1 - options.betas[0]) * gradient
                second[name] = options.betas[1] * second[name] + (1 - options.betas[1]) * gradient**2
                moments = first[name], second[name]
                updated = reference_update(config, step, 1.0, weight.detach(), starts[name], moments)
                weight.data.copy_(updated)
        return {name: weight.detach() for name, weight in weights.items()}


def engine_training(_rank: int, config: Config) -> dict[str, Tensor]:
    engine = make_engine(config)
    for step in range(1, STEPS + 1):
        engine.step(batches(config, engine.world, step))
    return live_weights(engine)


@pytest.mark.parametrize("layout", ["one rank", "data 2, ZeRO-1"])
def test_a_training_with_the_pull_is_plain_torch(layout: str) -> None:
    changes = {"distance_penalty": 40.0, "clip": 0.0}
    expected = run_ranks(1, plain_training, tuning_config("one rank", "llama", "fp64", **changes))[0]
    config = tuning_config(layout, "llama", "fp64", **changes)
    without = run_ranks(1, plain_training, tuning_config("one rank", "llama", "fp64", clip=0.0))[0]
    for weights in run_ranks(config.world_size, engine_training, config):
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-11, atol=1e-13)
    assert any((expected[name] - without[name]).abs().max() > 1e-4 for name in expected)
