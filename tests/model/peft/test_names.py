"""Patterns that mean nothing, or a part of what is one tensor here, are told from the config alone."""

from typing import Any

import pytest

from llmscale.config.schema import ModelSection
from llmscale.config.tuning import PeftSection
from llmscale.model.peft.names import is_meant, pattern_problems

LLAMA, GPT2 = ModelSection(family="llama", layers=2), ModelSection(family="gpt2", layers=2)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (LLAMA, {"method": "lora", "target_modules": ["q_proj", "*.1.mlp.*"]}, []),
        (LLAMA, {"method": "dora", "target_modules": ["q_proj", "c_attn"]}, ["'c_attn' is no linear layer"]),
        (GPT2, {"method": "lora", "target_modules": ["proj"]}, ["it has c_attn, c_fc, c_proj"]),
        (LLAMA, {"method": "freeze", "train": ["model.layers.1.*", "lm_head.weight"]}, []),
        (LLAMA, {"method": "freeze", "train": ["model.layers.2.*"]}, ["is no tensor of this model"]),
        (LLAMA, {"method": "freeze", "train": ["*.q_proj.weight"]}, ["one tensor with model.layers.0"]),
        (GPT2, {"method": "freeze", "train": ["*.c_attn.weight", "lm_head.weight"]}, ["'lm_head.weight' is"]),
    ],
)
def test_pattern_problems(model: ModelSection, options: dict[str, Any], said: list[str]) -> None:
    problems = list(pattern_problems(model, PeftSection.model_validate(options)))
    assert len(problems) == len(said)
    assert all(text in problem.message for text, problem in zip(said, problems))


def test_a_pattern_without_a_star_is_for_the_end_of_a_name() -> None:
    assert is_meant("model.layers.0.mlp.up_proj", ["up_proj"])
    assert not is_meant("model.layers.0.mlp.up_proj", ["proj"])
    assert not is_meant("model.layers.0.mlp.up_proj", ["up_*"])
