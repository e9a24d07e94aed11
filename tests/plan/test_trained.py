"""The formula's count of trained parameters on each rank is what applying the method leaves to be trained."""

from typing import Any

import pytest
import torch

from llmscale.config.schema import Config
from llmscale.engine.anchor import anchor
from llmscale.model.build import build_chunks
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.plan.memory import rank_memory
from llmscale.plan.parameters import stage_parameters
from llmscale.plan.trained import trained_on_rank
from llmscale.run.prepare_model import tune
from tests.distributed.parity import small_model
from tests.ranks import run_ranks

VOCABULARY, SEQUENCE = 1000, 24
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "lora": {"rank": 4},
    "dora": {"rank": 4},
    "adapter": {"bottleneck": 6},
    "prefix_tuning": {"virtual_tokens": 5},
    "prompt_tuning": {"virtual_tokens": 5},
    "p_tuning": {"virtual_tokens": 5, "encoder_hidden_size": 12},
    "bitfit": {},
    "freeze": {"train": ["*"]},
}
LAYOUTS = {"one": (1, {}), "tp2": (2, {"tensor": 2}), "pp2": (2, {"pipeline": 2})}
FAMILIES = ("llama", "gpt2")
HEADS: dict[str, dict[str, Any]] = {
    "words": {},
    "labels": {"task": "classify", "classify": {"labels": ["a", "b", "c"]}},
}


def config_of(family: str, layout: str, method: str, head: str = "words", **changes: Any) -> Config:
    ranks, parallel = LAYOUTS[layout]
    return Config.model_validate(
        {
            **HEADS[head],
            "model": {**small_model(family), "max_positions": SEQUENCE + 20},
            "peft": {"method": method, **METHODS[method], **changes},
            "train": {"sequence_length": SEQUENCE, "precision": "fp32"},
            "parallel": parallel,
            "cluster": {"processes_per_node": ranks},
        }
    )


def trained_rank(_: int, configs: list[Config]) -> list[tuple[int, int]]:
    """This rank's stage, and how many of its parameters are trained, of each config."""
    found: list[tuple[int, int]] = []
    for config in configs:
        world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
        with world.active():
            chunks = build_chunks(config.model, config.train, VOCABULARY, world, config.outputs)
            tune(chunks, config.peft, 0)
            for chunk in chunks:
                anchor(chunk)
        trained = (p.numel() for chunk in chunks for p in chunk.parameters() if p.requires_grad)
        found.append((world.coordinates.pipeline, sum(trained)))
    return found


def formula(config: Config, stage: int) -> int:
    parallel = config.parallel
    count = stage_parameters(
        config.model, VOCABULARY, SEQUENCE, parallel.tensor, parallel.pipeline, stage, config.outputs
    )
    return trained_on_rank(config, count, stage)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_trains_what_the_formula_says(layout: str) -> None:
    configs = {
        (family, method, head): config_of(family, layout, method, head)
        for family in FAMILIES
        for method in METHODS
        for head in HEADS
        if method != "bitfit" or family == "gpt2"
    }
    for rank in run_ranks(LAYOUTS[layout][0], trained_rank, list(configs.values())):
        for (case, config), (stage, trained) in zip(configs.items(), rank, strict=True):
            assert formula(config, stage) == trained, (*case, f"stage {stage}")


def test_patterns_are_counted_as_everything() -> None:
    some = [
        config_of("llama", "one", "lora", target_modules=["q_proj"]),
        config_of("llama", "one", "freeze", train=["*.3.*"]),
    ]
    (found,) = run_ranks(1, trained_rank, some)
    for config, (_, trained) in zip(some, found):
        assert trained < formula(config, 0)


def test_memory_follows_what_is_trained() -> None:
    """Four bytes each of gradient, and twice four of moments; the frozen weights have neither."""
    config = config_of("llama", "one", "lora")
    memory = rank_memory(config, VOCABULARY, 0)
    trained = formula(config, 0)
    assert (memory.gradients, memory.optimizer) == (4 * trained, 8 * trained)
