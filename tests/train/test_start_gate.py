"""What must hold of the first batch of preference training."""

import math
from typing import Any

import pytest

from llmscale.config.schema import Config
from llmscale.train.start_gate import start_faults

SOUND: dict[str, Any] = {
    "chosen_log_probability": -80.0,
    "rejected_log_probability": -95.0,
    "chosen_score": 0.3,
    "rejected_score": 0.1,
    "kl": 1e-6,
}


def faults(options: dict[str, Any], loss: float, precision: str = "fp32", **metrics: Any) -> str:
    config = Config.model_validate({**options, "train": {"precision": precision}})
    return "; ".join(start_faults(config, loss, SOUND | metrics))


def dpo(**options: Any) -> dict[str, Any]:
    return {"task": "dpo", "dpo": options}


@pytest.mark.parametrize(
    ("options", "loss", "metrics"),
    [
        (dpo(), math.log(2), {}),
        (dpo(label_smoothing=0.2), math.log(2), {}),
        (dpo(loss="robust", label_smoothing=0.2), math.log(2), {}),
        (dpo(loss="hinge"), 1.0, {}),
        (dpo(loss="ipo", beta=0.1), 25.0, {}),
        (dpo(loss="kto"), 0.5, {}),
        (dpo(sft_weight=0.5), math.log(2) + 0.5 * 2.5, {"sft_loss": 2.5}),
        (dpo(loss="simpo"), 1.7, {"kl": None}),
        (dpo(loss="orpo"), 4.2, {"kl": None}),
        ({"task": "reward"}, 0.71, {}),
        ({"task": "reward", "reward": "outcome"}, 0.71, {"rejected_score": None}),
    ],
)
def test_a_sound_start_passes(options: dict[str, Any], loss: float, metrics: dict[str, Any]) -> None:
    assert faults(options, loss, **metrics) == ""


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        (dpo(), math.log(2) + 2e-4),
        (dpo(), math.log(2) - 2e-4),
        (dpo(loss="hinge"), 1.01),
        (dpo(loss="ipo", beta=0.1), 25.01),
        (dpo(loss="kto"), 0.49),
        (dpo(sft_weight=0.5), math.log(2)),
    ],
)
def test_another_first_loss_is_a_fault(options: dict[str, Any], loss: float) -> None:
    assert "not those of the weights that the run starts from" in faults(options, loss, sft_loss=2.5)


def test_a_divergence_is_a_fault_even_where_the_loss_cannot_tell() -> None:
    # Both answers are off by as much: the difference that DPO looks at is 0.
    assert "divergence from the reference 3.0" in faults(dpo(), math.log(2), kl=3.0)
    weighted = dpo(loss="kto", desirable_weight=2.0)
    assert faults(weighted, 0.8) == ""
    assert "divergence" in faults(weighted, 0.8, kl=0.5)


def test_coarser_arithmetic_has_a_wider_gate() -> None:
    assert faults(dpo(), math.log(2) + 1e-3, "bf16") == ""
    assert faults(dpo(), math.log(2) + 1e-3, "fp32") != ""
    assert faults(dpo(), math.log(2) + 1e-5, "fp64") != ""


def test_only_kept_references_can_be_removed() -> None:
    assert "reference-*.npz" in faults(dpo(), 0.6)
    assert "reference-*.npz" not in faults(dpo(reference="held"), 0.6)


def test_answers_that_cannot_be_told_apart_are_a_fault() -> None:
    assert "the same log-probability, -80.0" in faults(dpo(), math.log(2), rejected_log_probability=-80.0)
    assert "the same score, 0.3" in faults({"task": "reward"}, math.log(2), rejected_score=0.3)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_fault(loss: float) -> None:
    assert f"the loss is {loss}" in faults({"task": "reward"}, loss)
