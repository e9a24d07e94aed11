"""Actors and their rollout engines in the ranks of tests."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.config.schema import Config
from llmscale.engine.engine import Engine
from llmscale.objectives.table import objective_of
from llmscale.parallel.layout import Layout
from llmscale.parallel.rng import derived_seed
from llmscale.parallel.world import World
from llmscale.rlhf.rollout.engine import Request, Written
from llmscale.rlhf.rollout.native import NativeRollout
from llmscale.rlhf.rollout.transformers import TransformersRollout
from tests.distributed.parity import parity_config, prepare_peft, randomise_vectors

VOCABULARY = 1000
END = frozenset(range(7, 37))
"""So many tokens that some answers end early."""
POSITIONS = 96
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor 2": {"tensor": 2},
    "pipeline 2": {"pipeline": 2},
    "zero 3": {"zero": 3, "data": 2},
}


def config_of(**options: Any) -> Config:
    config = parity_config(**options)
    model = config.model.model_copy(update={"max_positions": POSITIONS, "initializer_range": 0.2})
    return config.model_copy(update={"model": model})


def actor(config: Config) -> Engine:
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    if config.peft.method != "none":
        return Engine(config, world, VOCABULARY, objective_of(config), partial(prepare_peft, config=config))
    engine = Engine(config, world, VOCABULARY, objective_of(config))
    randomise_vectors(engine)
    return engine


def native(engine: Engine) -> NativeRollout:
    return NativeRollout(engine, END)


def copy_of(config: Config) -> TransformersRollout:
    device = torch.device("cpu")
    return TransformersRollout(config.model, VOCABULARY, POSITIONS, torch.float32, device, END)


def requests(count: int, longest: int = 24) -> list[Request]:
    """To some prompts there are two answers each."""
    found: list[Request] = []
    for number in range(count):
        seed = derived_seed("prompt", number // 2)
        prompt = [derived_seed(seed, place) % VOCABULARY for place in range(1 + seed % 17)]
        found.append(Request(prompt, derived_seed("answer", number), longest - number % 5))
    return found


def texts(written: Sequence[Written]) -> list[list[int]]:
    return [list(one.tokens) for one in written]


GREEDY = RolloutSection(batch=5).model_copy(update={"temperature": 0.0})
SAMPLED = RolloutSection(batch=5, temperature=0.7)
