"""Supervised fine-tuning: conversations, of which the assistant's turns are learned."""

import contextlib
from collections.abc import Iterator

from llmscale.checkpoint.base import Base
from llmscale.config.schema import Config
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.world import World
from llmscale.run.examples import open_examples
from llmscale.run.prompting import chat_prompting
from llmscale.run.training import Recipe, train


def run(config: Config, environment: RankEnvironment) -> int:
    """Train on this rank; returns 0 when the run is complete, 75 when it was asked to stop and has saved."""
    return train(config, environment, _recipe)


@contextlib.contextmanager
def _recipe(config: Config, world: World, _: Base | None) -> Iterator[Recipe]:
    with open_examples(config, world) as data:
        yield Recipe(
            data.config,
            CausalLM(),
            data.training,
            data.validation,
            data.forgetting,
            prompting=chat_prompting(config),
        )
