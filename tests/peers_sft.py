"""The same fine-tuning in TRL's `SFTTrainer`, over examples that are already tokens; the packing is its own,
too."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from llmscale.config.schema import Config
from llmscale.data.examples import Example
from tests.peers import peer
from tests.peers_trl import Recording, arguments_of, numbers_tokenizer

IGNORED = -100
"""Label of a token that does not count."""


class RecordingTrainer(Recording, SFTTrainer):
    def losses_from(self, weights: Mapping[str, Tensor]) -> list[float]:
        """Train from `weights`, which have their Hugging Face names."""
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
        return self.losses_of_steps()


def trl_trainer(config: Config, examples: Sequence[Example], folder: Path, packing: bool) -> RecordingTrainer:
    """A trainer over `examples` in their order, one epoch after the other; weights are of no meaning yet.

    Args:
        config: model, training and optimizer.
        folder: for what the trainer writes.
        packing: by TRL's own best fit, else one example a row, padded to the longest of its microbatch.
    """
    vocabulary, train = config.model.vocabulary_size or 0, config.train
    arguments = arguments_of(config, folder, train.micro_batch_size, train.global_batch_size)
    return RecordingTrainer(
        config,
        model=peer(config.model, vocabulary, train.sequence_length).float(),
        args=SFTConfig(packing=packing, completion_only_loss=True, **arguments),
        train_dataset=as_dataset(examples),
        processing_class=numbers_tokenizer(vocabulary),
    )


def as_dataset(examples: Sequence[Example]) -> datasets.Dataset:
    """As TRL wants what is tokenised already: `input_ids` and `labels`."""
    return datasets.Dataset.from_list([example_columns(example) for example in examples])


def example_columns(example: Example) -> dict[str, list[int]]:
    labels = np.where(example.learned, example.tokens, IGNORED)
    return {"input_ids": example.tokens.tolist(), "labels": labels.tolist()}


def packed_examples(trainer: RecordingTrainer) -> Iterator[list[Example]]:
    """The rows that TRL has packed, as examples of ours."""
    for row in trainer.train_dataset:
        tokens = np.array(row["input_ids"], np.int32)
        learned = np.array(row["labels"]) != IGNORED
        ends = np.cumsum(row["seq_lengths"])[:-1]
        yield [Example(*parts) for parts in zip(np.split(tokens, ends), np.split(learned, ends))]
