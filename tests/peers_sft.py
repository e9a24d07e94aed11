"""The same fine-tuning in TRL's `SFTTrainer`, over examples that are already tokens.

The schedule of the learning rate is handed over, because transformers counts its steps from 0; everything
else that TRL does is its own: collating, packing, what the loss is divided by, clipping, the optimizer.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from llmscale.config.schema import Config
from llmscale.data.examples import Example
from llmscale.engine.optimizer import learning_rate
from tests.peers import peer

IGNORED = -100
"""Label of a token that does not count."""


class RecordingTrainer(SFTTrainer):
    """Keeps the exact loss of each step, and learns with the learning rates of `options`."""

    def __init__(self, config: Config, **arguments: Any) -> None:
        self.options = config
        self.losses: list[float] = []
        self._parts: list[float] = []
        super().__init__(**arguments)

    def losses_from(self, weights: Mapping[str, Tensor]) -> list[float]:
        """Train from `weights`, which have their Hugging Face names."""
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
        self.train()
        return self.losses

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss = super().training_step(*arguments, **named)
        # Each microbatch gives its part of the step's mean.
        self._parts.append(loss.item())
        return loss

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        self._close_step()
        return super().get_batch_samples(*arguments, **named)

    def train(self, *arguments: Any, **named: Any) -> Any:
        result = super().train(*arguments, **named)
        self._close_step()
        return result

    def _close_step(self) -> None:
        if self._parts:
            self.losses.append(sum(self._parts))
        self._parts = []

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        options, steps = self.options.optimizer, self.options.train.steps
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda done: learning_rate(options, steps, done + 1) / options.lr
        )
        return self.lr_scheduler


def trl_trainer(config: Config, examples: Sequence[Example], folder: Path, packing: bool) -> RecordingTrainer:
    """A trainer over `examples` in their order, one epoch after the other; weights are of no meaning yet.

    Args:
        config: model, training and optimizer.
        folder: for what the trainer writes.
        packing: by TRL's own best fit, else one example a row, padded to the longest of its microbatch.
    """
    vocabulary = config.model.vocabulary_size or 0
    return RecordingTrainer(
        config,
        model=peer(config.model, vocabulary, config.train.sequence_length).float(),
        args=arguments_of(config, folder, packing),
        train_dataset=as_dataset(examples),
        processing_class=numbers_tokenizer(vocabulary),
    )


def arguments_of(config: Config, folder: Path, packing: bool) -> SFTConfig:
    train, options = config.train, config.optimizer
    return SFTConfig(
        output_dir=str(folder),
        max_steps=train.steps,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.global_batch_size // train.micro_batch_size,
        max_length=train.sequence_length,
        packing=packing,
        completion_only_loss=True,
        learning_rate=options.lr,
        adam_beta1=options.betas[0],
        adam_beta2=options.betas[1],
        adam_epsilon=options.epsilon,
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        optim="adamw_torch_fused",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
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


def numbers_tokenizer(vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are its ids: the trainer wants one, and asks it for its padding only."""
    words = {str(number): number for number in range(vocabulary_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="1", pad_token="0", unk_token="0")


def single_threaded() -> None:
    """As the ranks of tests are; the losses of more threads differ in the last places."""
    torch.set_num_threads(1)
