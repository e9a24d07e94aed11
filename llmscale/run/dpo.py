"""Preferences without a reward model: DPO and its family."""

import contextlib
from collections.abc import Callable, Iterator

from llmscale.checkpoint.base import Base
from llmscale.config.schema import Config
from llmscale.engine.engine import Engine
from llmscale.engine.reference import AdapterOff, Reference
from llmscale.objectives.table import objective_of
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.world import World
from llmscale.run.examples import FOLDER, open_examples
from llmscale.run.prompting import chat_prompting
from llmscale.run.references import References, held_reference
from llmscale.run.training import Recipe, train


def run(config: Config, environment: RankEnvironment) -> int:
    """Train on this rank; returns 0 when the run is complete, 75 when it was asked to stop and has saved."""
    return train(config, environment, _recipe)


@contextlib.contextmanager
def _recipe(config: Config, world: World, start: Base | None) -> Iterator[Recipe]:
    references = None
    if start is not None and config.has_reference and config.dpo.reference == "precomputed":
        references = References(config, world, start, config.run_folder / FOLDER)
    with open_examples(config, world, references and references.of) as data:
        if references is not None:
            references.close()
        yield Recipe(
            data.config,
            objective_of(data.config),
            data.training,
            data.validation,
            data.forgetting,
            prompting=chat_prompting(config),
            reference=_reference(config, world, start),
        )


def _reference(config: Config, world: World, start: Base | None) -> Callable[[Engine], Reference] | None:
    """What the engine asks while it trains."""
    if start is None or not config.has_reference or config.dpo.reference == "precomputed":
        return None
    if config.dpo.reference == "adapter":
        return lambda engine: AdapterOff(engine.scheduled, world)
    return lambda _: held_reference(config, world, start)
