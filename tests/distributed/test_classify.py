"""A head under every layout: the loss stream, the gradients and the weights of the single rank."""

from typing import Any

import pytest

from llmscale.config.schema import Config
from tests.distributed.parity import TOLERANCES, Run, compare, parity_config, train

STEPS = 6
LABELS = {"labels": ["a", "b", "c"]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor 2": {"tensor": 2},
    "sequence parallel": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "zero 2": {"data": 2, "zero": 2},
    "zero 3": {"data": 2, "zero": 3},
}


def classifier(family: str = "llama", problem: str = "single_label", **options: Any) -> Config:
    tree = parity_config(family, **options).model_dump(exclude_unset=True)
    section = {"problem": problem} | (LABELS if problem == "single_label" else {})
    return Config.model_validate(tree | {"task": "classify", "classify": section})


@pytest.fixture(scope="module")
def alone() -> Run:
    return train(classifier(), steps=STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_one_rank_gives(layout: str, alone: Run) -> None:
    run = train(classifier(**LAYOUTS[layout]), steps=STEPS)
    compare(run, alone, TOLERANCES["fp32"])
    assert run.weights["score.weight"].shape == (3, 64)
    assert "lm_head.weight" not in run.weights


def test_regression_of_a_tied_model_with_biases_under_tensor_and_pipeline_parallelism() -> None:
    """gpt2's output is its embedding: without it the last stage has no copy."""
    expected = train(classifier("gpt2", "regression", tied=True), steps=STEPS)
    parallel = classifier("gpt2", "regression", tied=True, tensor=2, sequence=True, pipeline=2)
    compare(train(parallel, steps=STEPS), expected, TOLERANCES["fp32"])
