"""Every PEFT method gives under every layout what it gives on one rank: losses, gradient norms, gradients and
weights of what is trained; what is frozen stays (the gates of a run are asked after each step)."""

from functools import cache
from typing import Any

import pytest

from llmscale.config.schema import Config
from llmscale.engine.zero import deepspeed_config
from tests.distributed.parity import TOLERANCES, Run, compare, parity_config, train_all
from tests.distributed.test_layout_parity import LAYOUTS, MODELS, is_possible

STEPS = 4
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8},
    "lora-some": {"method": "lora", "rank": 4, "alpha": 8, "target_modules": ["*.1.*_proj", "*.1.*.c_*"]},
    "dora": {"rank": 4, "alpha": 8},
    "adapter": {"bottleneck": 6},
    "prefix_tuning": {"virtual_tokens": 5},
    "prompt_tuning": {"virtual_tokens": 5},
    "p_tuning": {"virtual_tokens": 5, "encoder_hidden_size": 12},
    "bitfit": {},
    "freeze": {"train": ["model.layers.3.*", "transformer.h.3.*"]},
}
BIASED = ("gpt2",)


def small_weights_too(*arguments: Any) -> dict[str, Any]:
    """ZeRO-3 partitions whatever size a parameter has."""
    tree = deepspeed_config(*arguments)
    tree["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return tree


PATCHES = {"llmscale.engine.zero.deepspeed_config": small_weights_too}


def configs(model: str, precision: str, layout: dict[str, Any]) -> dict[str, Config]:
    return {
        method: parity_config(
            **MODELS[model], **layout, precision=precision, peft={"method": method, **METHODS[method]}
        )
        for method in METHODS
        if method != "bitfit" or model in BIASED
    }


@cache
def one_rank(model: str, precision: str) -> dict[str, Run]:
    wanted = configs(model, precision, {})
    return dict(zip(wanted, train_all(list(wanted.values()), steps=STEPS)))


ALWAYS = (
    ("gpt2", "sp2-pp2-recompute", "fp64"),
    ("gpt2", "pp2-dp2", "fp64"),
    ("llama", "dp2-zero3", "fp32"),
    ("llama", "tp2", "bf16"),
)
"""What `make test` runs: tensor ranks with parts of the sequence, stages (one of which may train nothing,
also under ZeRO), ZeRO 1 and 3, bf16; with biases and without. The rest of the matrix is `make soak`."""
MATRIX = [
    pytest.param(
        model, layout, precision, marks=() if (model, layout, precision) in ALWAYS else pytest.mark.soak
    )
    for model in MODELS
    for layout in LAYOUTS
    for precision in ("fp32", "fp64", "bf16")
    if is_possible(layout, precision)
]


@pytest.mark.parametrize(("model", "layout", "precision"), MATRIX)
def test_layout_gives_what_one_rank_gives(model: str, layout: str, precision: str) -> None:
    wanted = configs(model, precision, LAYOUTS[layout])
    runs = train_all(list(wanted.values()), PATCHES, STEPS)
    for method, run in zip(wanted, runs):
        try:
            compare(run, one_rank(model, precision)[method], TOLERANCES[precision])
        except AssertionError as error:
            raise AssertionError(f"{method}: {error}") from None
