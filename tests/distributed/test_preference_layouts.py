"""Objectives of preferences under every layout: the loss stream, gradients and weights of the single rank."""

from functools import cache
from typing import Any

import pytest

from llmscale.config.schema import Config
from tests.distributed.parity import TOLERANCES, Run, compare, parity_config, train_all
from tests.distributed.test_peft_layouts import PATCHES

STEPS = 4
TASKS: dict[str, dict[str, Any]] = {
    "sigmoid": {"task": "dpo", "dpo": {"loss": "sigmoid", "sft_weight": 0.2}},
    # Its estimate of KL is one number of all replicas' batches.
    "kto": {"task": "dpo", "dpo": {"loss": "kto", "desirable_weight": 1.5}},
    "bradley_terry": {"task": "reward", "reward": {"margin": True}},
    "outcome": {"task": "reward", "reward": "outcome"},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor 2": {"tensor": 2},
    "sequence parallel": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "tensor 2 pipeline 2": {"tensor": 2, "pipeline": 2},
    "zero 2": {"data": 2, "zero": 2},
    "zero 3": {"data": 2, "zero": 3},
}
QUICK = ("sequence parallel", "zero 3")
"""What `make test` runs; the rest is `make soak`."""


def configs(**options: Any) -> list[Config]:
    tree = parity_config(**options).model_dump(exclude_unset=True)
    return [Config.model_validate(tree | task) for task in TASKS.values()]


@cache
def alone() -> list[Run]:
    return train_all(configs(), steps=STEPS)


def soak(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.soak)


@pytest.mark.parametrize("layout", [layout if layout in QUICK else soak(layout) for layout in LAYOUTS])
def test_every_layout_gives_what_one_rank_gives(layout: str) -> None:
    for task, run, expected in zip(TASKS, train_all(configs(**LAYOUTS[layout]), steps=STEPS), alone()):
        try:
            compare(run, expected, TOLERANCES["fp32"])
        except AssertionError as error:
            raise AssertionError(f"{task}: {error}") from None


LORA = {"method": "lora", "rank": 4, "alpha": 8}


@pytest.mark.soak
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_few_weights_as_one_rank_does(layout: str) -> None:
    expected = train_all(configs(peft=LORA), PATCHES, STEPS)
    runs = train_all(configs(peft=LORA, **LAYOUTS[layout]), PATCHES, STEPS)
    for task, run, reference in zip(TASKS, runs, expected):
        try:
            compare(run, reference, TOLERANCES["fp32"])
        except AssertionError as error:
            raise AssertionError(f"{task}: {error}") from None
