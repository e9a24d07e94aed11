"""What a run trains, and on top of what: the base under PEFT, which its checkpoints name and do not hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.base import DESCRIBED, Base, find_base, newest_committed
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
    base: Base | None
    """None where all weights are trained."""

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
        if self.base is None:
            return {}
        return {
            PEFT: tuning_options(self.config.peft),
            DESCRIBED: self.base.described(),
            VOCABULARY: resolved_vocabulary_size(self.config),
        }


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


def prepare_model(config: Config, checkpoints: CheckpointSection, agreement: Agreement) -> Preparation:
    """Find the base, the same one that the run was begun from if it was. Collective.

    Raises:
        InputError: it is not there any more. CheckpointError: nothing is there.
    """
    if config.peft.method == "none":
        return Preparation(config, agreement, None)
    found = agreement.decide(None, lambda _: _find_base(config, checkpoints.resume == "never"))
    return Preparation(config, agreement, Base.in_description(found))


def _find_base(config: Config, from_scratch: bool) -> dict[str, JsonValue]:
    """Rank 0: the base as a description has it."""
    assert config.train.init_from is not None
    newest = None if from_scratch else newest_committed(config.run_folder)
    known = newest and newest.manifest and Base.in_description(newest.manifest.description)
    return {DESCRIBED: find_base(config.train.init_from, known).described()}
