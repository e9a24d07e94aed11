"""Policy and critic of reinforcement learning under every layout: the same experience gives the loss stream,
gradients and weights of the single rank."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.objective import Objective
from llmscale.objectives.policy import Policy
from llmscale.objectives.rl.told import token_figures
from llmscale.objectives.value import Value
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.parity import TOLERANCES, Patches, Run, compare, microbatches, parity_config, train_all
from tests.distributed.test_preference_layouts import LAYOUTS
from tests.ranks import run_ranks

STEPS = 3
TEMPERATURE = 0.9
LOSS = {"coefficient": 0.2, "penalty": "loss"}
TASKS: dict[str, dict[str, Any]] = {
    "ppo": {"rlhf": {"update": {"clip": 0.1, "dual_clip": 2.0, "entropy": 0.05}}},
    "grpo": {"rlhf": {"algorithm": "grpo", "update": {"normalisation": "sequence"}, "kl": LOSS}},
    "gspo": {"rlhf": {"algorithm": "grpo", "update": {"ratio": "geometric", "normalisation": "constant"}}},
    # A model with a head.
    "critic": {"task": "reward"},
}
QUICK = ("tensor 2 pipeline 2", "zero 3")
"""What `make test` runs; the rest is `make soak`."""
CUTS = (9, 15)
"""Two answers a row."""
PROMPT = 3


def objective_of(config: Config) -> Objective:
    if config.task == "reward":
        return Value(clip=0.3)
    return Policy(config.rlhf, temperature=TEMPERATURE, importance_cap=1.2, longest_answer=20)


def experiences(config: Config, world: World, step: int) -> list[Batch]:
    """This rank's microbatches, each row of two answers of which some tokens are learned."""
    train, replicas, rows = config.train, world.layout.data, config.train.micro_batch_size
    plain = microbatches(config.model_copy(update={"task": "pretrain"}), world, step)
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (6, train.global_batch_size, train.sequence_length)
    old, rollout, reference, advantages, values, returns = torch.randn(shape, generator=generator)
    # About what random weights give.
    old = -math.log(config.model.vocabulary_size or 1) + 0.2 * old
    signals = {
        "old_log_probabilities": old,
        "rollout_log_probabilities": old + 0.2 * rollout,
        "reference_log_probabilities": old + 0.2 * reference,
        "advantages": advantages,
        "values": 0.3 * values,
        "returns": returns,
    }
    places = torch.cat([torch.arange(cut) for cut in CUTS])
    batches: list[Batch] = []
    for number, batch in enumerate(plain):
        first = (number * replicas + world.coordinates.data) * rows
        batches.append(
            replace(
                batch,
                loss_mask_BS=batch.loss_mask_BS * (places >= PROMPT),
                position_ids_BS=places.expand(rows, -1),
                document_lengths=(CUTS,) * rows,
                signals={name: signal[first : first + rows] for name, signal in signals.items()},
            )
        )
    return batches


PATCHES: Patches = {
    "tests.distributed.parity.objective_of": objective_of,
    "tests.distributed.parity.microbatches": experiences,
}


def configs(**options: Any) -> list[Config]:
    tree = parity_config(**options).model_dump(exclude_unset=True)
    return [Config.model_validate(tree | task) for task in TASKS.values()]


@cache
def alone() -> list[Run]:
    return train_all(configs(), PATCHES, STEPS)


def soak(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.soak)


@pytest.mark.parametrize("layout", [layout if layout in QUICK else soak(layout) for layout in LAYOUTS])
def test_every_layout_gives_what_one_rank_gives(layout: str) -> None:
    runs = train_all(configs(**LAYOUTS[layout]), PATCHES, STEPS)
    for task, run, expected in zip(TASKS, runs, alone()):
        try:
            compare(run, expected, TOLERANCES["fp32"])
        except AssertionError as error:
            raise AssertionError(f"{task}: {error}") from None


@pytest.mark.soak
@pytest.mark.parametrize("layout", ["tensor 2 pipeline 2", "sequence parallel"])
def test_nothing_but_rounding_lies_between_layouts(layout: str) -> None:
    ours = train_all(configs(precision="fp64", **LAYOUTS[layout]), PATCHES, STEPS)
    theirs = train_all(configs(precision="fp64"), PATCHES, STEPS)
    for run, expected in zip(ours, theirs):
        compare(run, expected, TOLERANCES["fp64"])


def first_step(_: int, config: Config) -> dict[str, Any]:
    """The figures of a step whose experience this very policy has given, and which is its own reference."""
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    objective = objective_of(config)
    engine = Engine(config, world, config.model.vocabulary_size or 0, objective)
    batches = experiences(config, world, 0)

    def tell(chunk: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return token_figures(chunk, output, batch, TEMPERATURE).log_probabilities_BS

    # Only the last stage hears, and only it looks.
    for place, told_BS in enumerate(engine.ask(batches, tell)):
        known = dict.fromkeys(("old", "reference", "rollout"), told_BS)
        signals = {f"{name}_log_probabilities": told for name, told in known.items()}
        batches[place] = replace(batches[place], signals={**batches[place].signals, **signals})
    result = engine.step(batches)
    engine.close()
    return {**result.metrics, "grad_norm": result.grad_norm}


OWN = ("one rank", "tensor 2 pipeline 2")


@pytest.mark.parametrize("precision", ["fp32", soak("bf16")])
@pytest.mark.parametrize("layout", [one if one in OWN else soak(one) for one in ("one rank", *LAYOUTS)])
def test_the_first_step_has_a_ratio_of_one(layout: str, precision: str) -> None:
    """Exactly: what is told without a gradient is what is learned from."""
    tree = parity_config(precision=precision, **LAYOUTS.get(layout, {})).model_dump(exclude_unset=True)
    config = Config.model_validate(tree | TASKS["grpo"])
    found = run_ranks(config.world_size, first_step, config)[0]
    exact = ("ratio", "kl", "kl_old", "kl_loss", "clip_share", "rollout_gap")
    assert [found[name] for name in exact] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert found["entropy"] > 1 and found["grad_norm"] > 1e-3
