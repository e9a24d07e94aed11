"""A model with its weights and nothing else, on one rank of those that hold it together."""

from collections.abc import Sequence
from pathlib import Path

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.base import Base
from llmscale.checkpoint.begin import begin_from, newest_on_a_base
from llmscale.checkpoint.loader import load_weights
from llmscale.checkpoint.merged import manifest_of
from llmscale.checkpoint.tuned import PEFT
from llmscale.config.schema import Config
from llmscale.config.tuning import PeftSection
from llmscale.model.build import build_chunks
from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import declare_parameters
from llmscale.model.weights import weights_to_fill
from llmscale.parallel.cores import use_cores
from llmscale.parallel.distributed import connect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.run.prepare_model import fill_base, tune


def load_model(
    config: Config,
    vocabulary_size: int,
    environment: RankEnvironment,
    weights: Path,
    base: Path | None = None,
) -> tuple[list[LanguageModel], World]:
    """Connect this rank, build its part of the model, and put the weights in. Collective.

    Args:
        config: model and layout, with the head of a model that has one.
        vocabulary_size: true number of tokens.
        environment: of this rank.
        weights: run, checkpoint or Hugging Face folder. What was trained with PEFT stays beside its base.
        base: where that is, if it has moved.

    Raises:
        InputError: the weights do not fit the model. CheckpointError: they are damaged, or a base has gone.
    """
    use_cores(environment, config.cluster.threads, config.cluster.numa_binding)
    device = connect(environment)
    world = World(Layout.of(config.parallel, environment.world_size), device)
    with world.active():
        chunks = build_chunks(config.model, config.train, vocabulary_size, world, config.outputs)
        agreement = Agreement(world.rank, world.layout.world_size, world.control_group)
        fill_model(chunks, weights, config, agreement, base)
    return chunks, world


def fill_model(
    chunks: Sequence[LanguageModel],
    weights: Path,
    config: Config,
    agreement: Agreement,
    base: Path | None = None,
) -> None:
    """Put the weights into a model that has none yet; the world must be active. Collective."""
    tuned = agreement.decide(None, lambda _: newest_on_a_base(weights))
    if tuned is not None:
        _fill_tuned(chunks, Path(tuned), config, agreement, base)
        return
    with weights_to_fill(chunks) as pieces:
        begin_from(weights, pieces, agreement)


def _fill_tuned(
    chunks: Sequence[LanguageModel],
    checkpoint: Path,
    config: Config,
    agreement: Agreement,
    moved_to: Path | None,
) -> None:
    """The base's weights, what PEFT adds, and the values that it was trained to."""
    description = manifest_of(checkpoint).description
    recorded = Base.in_description(description)
    assert recorded is not None
    base = recorded
    if moved_to is not None:
        found = agreement.decide(None, lambda _: str(recorded.moved_to(moved_to).path))
        base = Base(Path(found), recorded.identity)
    agreement.require(lambda: base.check() if agreement.rank == 0 else None)
    fill_base(chunks, base, config, agreement)
    tune(chunks, PeftSection.model_validate(description[PEFT]), config.train.seed)
    with weights_to_fill(chunks, _frozen(chunks)) as pieces:
        load_weights(checkpoint, pieces, agreement)


def _frozen(chunks: Sequence[LanguageModel]) -> list[str]:
    """Names of the stored tensors that are not trained."""
    return [
        name
        for chunk in chunks
        for local_name, declaration in declare_parameters(chunk).items()
        if not chunk.get_parameter(local_name).requires_grad
        for name in declaration.names
    ]
