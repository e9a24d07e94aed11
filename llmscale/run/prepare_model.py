"""What a run trains, and where it starts from: its checkpoints name the base under PEFT, and the reference of
preference training, and hold neither."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.base import DESCRIBED, REFERENCE, Base, find_base, newest_committed
from llmscale.checkpoint.begin import begin_from
from llmscale.checkpoint.tuned import PEFT, VOCABULARY, tuning_options
from llmscale.config.schema import CheckpointSection, Config
from llmscale.config.tuning import PeftSection
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.table import apply_peft
from llmscale.model.tensors import not_begun_from, vocabulary_tensors
from llmscale.model.weights import weights_to_fill


@dataclass(frozen=True)
class Preparation:
    """What is done to the fresh model, at every start of the run alike; called before DeepSpeed takes it."""

    config: Config
    agreement: Agreement
    start: Base | None
    """The weights that the run started from; None where nothing needs them once it has."""

    @property
    def base(self) -> Base | None:
        """None where all weights are trained."""
        return None if self.config.peft.method == "none" else self.start

    def __call__(self, chunks: Sequence[LanguageModel]) -> None:
        """
        Raises:
            InputError: the base or the options do not fit the model. CheckpointError: the base is damaged.
        """
        if self.base is not None:
            fill_base(chunks, self.base, self.config, self.agreement)
            tune(chunks, self.config.peft, self.config.train.seed)

    @property
    def description(self) -> dict[str, JsonValue]:
        """What the run's checkpoints say of it."""
        described: dict[str, JsonValue] = {}
        if self.base is not None:
            described |= {
                PEFT: tuning_options(self.config.peft),
                DESCRIBED: self.base.described(),
                VOCABULARY: resolved_vocabulary_size(self.config),
            }
        if self.start is not None and self.config.has_reference:
            described[REFERENCE] = self.start.described()
        return described


def fill_base(chunks: Sequence[LanguageModel], base: Base, config: Config, agreement: Agreement) -> None:
    """Give a model the base's weights; a head stays as it is. Collective."""
    without = not_begun_from(config.model, config.outputs)
    with weights_to_fill(chunks, without) as pieces:
        begin_from(base.path, pieces, agreement, vocabulary_tensors(config.model), without)


def tune(chunks: Sequence[LanguageModel], peft: PeftSection, seed: int) -> None:
    """Apply PEFT to a model that has its base's weights; a head is new, and trained whole beside it."""
    apply_peft(chunks, peft, seed)
    for chunk in chunks:
        if chunk.score is not None:
            chunk.score.requires_grad_(True)


def find_start(config: Config, checkpoints: CheckpointSection, agreement: Agreement) -> Base | None:
    """The weights that the run starts from, the same ones that it was begun from if it was; None where
    nothing needs them once it has. Collective.

    Raises:
        InputError: they are not there any more. CheckpointError: nothing is there.
    """
    if config.peft.method == "none" and not config.has_reference:
        return None
    found = agreement.decide(None, lambda _: _find_start(config, checkpoints.resume == "never"))
    return Base.in_description(found)


def _find_start(config: Config, from_scratch: bool) -> dict[str, JsonValue]:
    """Rank 0: the start as a description has a base."""
    assert config.train.init_from is not None
    newest = None if from_scratch else newest_committed(config.run_folder)
    known = None
    if newest is not None and newest.manifest is not None:
        description = newest.manifest.description
        known = Base.in_description(description) or Base.in_description(description, REFERENCE)
    return {DESCRIBED: find_base(config.train.init_from, known).described()}
