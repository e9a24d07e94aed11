"""A model with its weights and nothing else, on one rank of those that hold it together."""

from collections.abc import Callable, Sequence

from llmscale.checkpoint.agreement import Agreement
from llmscale.config.schema import Config
from llmscale.model.build import build_chunks
from llmscale.model.language_model import LanguageModel
from llmscale.model.regions import Piece
from llmscale.model.weights import weights_to_fill
from llmscale.parallel.distributed import connect, use_threads
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World


def load_model(
    config: Config,
    vocabulary_size: int,
    environment: RankEnvironment,
    fill: Callable[[Sequence[Piece], Agreement], object],
) -> tuple[list[LanguageModel], World]:
    """Connect this rank, build its part of the model, and have `fill` put the weights in. Collective."""
    use_threads(config.cluster.threads, environment.local_world_size)
    device = connect(environment)
    world = World(Layout.of(config.parallel, environment.world_size), device)
    with world.active():
        chunks = build_chunks(config.model, config.train, vocabulary_size, world, config.outputs)
        with weights_to_fill(chunks) as pieces:
            fill(pieces, Agreement(world.rank, world.layout.world_size, world.control_group))
    return chunks, world
