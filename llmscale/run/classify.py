"""Classification of texts, and regression: a head on the last token tells what each is."""

import contextlib
from collections.abc import Iterator

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.base import Base
from llmscale.config.schema import Config
from llmscale.data.labelled import with_labels
from llmscale.objectives.table import objective_of
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.world import World
from llmscale.run.examples import open_examples
from llmscale.run.training import Recipe, train


def run(config: Config, environment: RankEnvironment) -> int:
    """Train on this rank; returns 0 when the run is complete, 75 when it was asked to stop and has saved."""
    return train(config, environment, _recipe)


@contextlib.contextmanager
def _recipe(config: Config, world: World, _: Base | None) -> Iterator[Recipe]:
    agreement = Agreement(world.rank, world.layout.world_size, world.control_group)
    labels = agreement.decide(None, lambda _: with_labels(config).classify.labels)
    classify = config.classify.model_copy(update={"labels": labels})
    config = config.model_copy(update={"classify": classify})
    with open_examples(config, world) as data:
        yield Recipe(data.config, objective_of(data.config), data.training, data.validation)
