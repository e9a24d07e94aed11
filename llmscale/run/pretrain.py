"""Pretraining, and continual pretraining: next-token prediction on a blend of corpora."""

import contextlib
from collections.abc import Iterator

from llmscale.checkpoint.base import Base
from llmscale.config.schema import Config
from llmscale.data.loader import BatchSource
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.world import World
from llmscale.run.forgetting import forgetting_source
from llmscale.run.training import Recipe, train


def run(config: Config, environment: RankEnvironment) -> int:
    """Train on this rank; returns 0 when the run is complete, 75 when it was asked to stop and has saved."""
    return train(config, environment, _recipe)


@contextlib.contextmanager
def _recipe(config: Config, world: World, _: Base | None) -> Iterator[Recipe]:
    replica = (world.coordinates.data, world.layout.data)
    with contextlib.ExitStack() as open_sources:
        training = open_sources.enter_context(BatchSource(config, "train", *replica))
        validation = None
        if config.train.validate_every is not None:
            validation = open_sources.enter_context(BatchSource(config, "validation", *replica))
        forgetting = forgetting_source(config, *replica)
        if forgetting is not None:
            open_sources.enter_context(forgetting)
        yield Recipe(config, CausalLM(), training, validation, forgetting)
