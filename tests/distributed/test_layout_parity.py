"""Every layout gives what one rank gives: losses, gradient norms, every gradient and every weight."""

from functools import cache

import pytest

from tests.distributed.parity import TOLERANCES, Run, compare, parity_config, train

LAYOUTS = {
    "tp2": {"tensor": 2},
    "tp4": {"tensor": 4},
    "sp2": {"tensor": 2, "sequence": True},
    "pp2": {"pipeline": 2},
    "pp4": {"pipeline": 4},
    "pp2-interleaved": {"pipeline": 2, "interleave": 2},
    "dp2-zero1": {"data": 2},
    "dp2-zero2": {"data": 2, "zero": 2},
    "dp2-zero3": {"data": 2, "zero": 3},
    "dp4-zero3": {"data": 4, "zero": 3},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "sp2-pp2-recompute": {"tensor": 2, "sequence": True, "pipeline": 2, "recompute": "full"},
    "pp2-dp2": {"pipeline": 2, "data": 2},
    "tp2-dp2-zero2": {"tensor": 2, "data": 2, "zero": 2},
    "sp2-dp2-zero3": {"tensor": 2, "sequence": True, "data": 2, "zero": 3},
    "sp2-pp2-interleaved": {"tensor": 2, "sequence": True, "pipeline": 2, "interleave": 2},
}
MODELS = {
    "llama": {},
    "llama-tied": {"tied": True},
    "gpt2": {"family": "gpt2", "tied": True},
    "qwen3": {"family": "qwen3"},
    "mistral": {"family": "mistral"},
}
ALWAYS = (
    *(("llama", layout, "fp32") for layout in LAYOUTS),
    *(("llama-tied", layout, "fp32") for layout in ("pp4", "pp2-interleaved", "dp2-zero3")),
    *(("llama-tied", layout, "fp64") for layout in ("sp2-pp2-recompute", "pp2-dp2", "tp2-dp2-zero2")),
    *((model, layout, "fp64") for model in ("gpt2", "qwen3") for layout in ("sp2", "sp2-pp2-interleaved")),
    ("mistral", "tp2-pp2", "fp64"),
)
"""What `make test` runs; the rest of the matrix is `make soak`."""


def is_possible(layout: str, precision: str) -> bool:
    # DeepSpeed's ZeRO-3 has no float64.
    return not (precision == "fp64" and LAYOUTS[layout].get("zero") == 3)


MATRIX = [
    pytest.param(
        model, layout, precision, marks=() if (model, layout, precision) in ALWAYS else pytest.mark.soak
    )
    for model in MODELS
    for layout in LAYOUTS
    for precision in ("fp32", "fp64")
    if is_possible(layout, precision)
]


@cache
def one_rank(model: str, precision: str) -> Run:
    return train(parity_config(**MODELS[model], precision=precision))


@pytest.mark.parametrize(("model", "layout", "precision"), MATRIX)
def test_layout_gives_what_one_rank_gives(model: str, layout: str, precision: str) -> None:
    run = train(parity_config(**MODELS[model], **LAYOUTS[layout], precision=precision))
    compare(run, one_rank(model, precision), TOLERANCES[precision])
