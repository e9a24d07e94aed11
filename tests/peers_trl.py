"""What all of TRL's trainers are given that a training here is compared with.

The schedule of the learning rate is handed over, because transformers counts its steps from 0; everything
else that TRL does is its own: collating, what the loss is divided by, clipping, the optimizer.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedTokenizerFast, Trainer

from llmscale.config.schema import Config
from llmscale.engine.learning_rate import learning_rate

PADDING, END = "<padding>", "<end>"
"""The first two words of `numbers_tokenizer`."""


class Recording(Trainer):
    """Put before one of TRL's trainers: reads the data in its order, one epoch after the other, keeps the
    exact loss of each step, and learns with the learning rates of `options`."""

    def __init__(self, options: Config, **arguments: Any) -> None:
        self.options = options
        self.losses: list[float] = []
        self._parts: list[float] = []
        super().__init__(**arguments)

    def losses_of_steps(self) -> list[float]:
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

    def _send_telemetry(self) -> None:
        """Nobody is told of a test."""


def arguments_of(config: Config, folder: Path, examples_at_once: int, examples_a_step: int) -> dict[str, Any]:
    """What the options of all trainers have in common.

    Args:
        folder: for what the trainer writes.
        examples_at_once: of each microbatch.
    """
    options = config.optimizer
    return {
        "output_dir": str(folder),
        "max_steps": config.train.steps,
        "per_device_train_batch_size": examples_at_once,
        "gradient_accumulation_steps": examples_a_step // examples_at_once,
        "max_length": config.train.sequence_length,
        "learning_rate": options.lr,
        "adam_beta1": options.betas[0],
        "adam_beta2": options.betas[1],
        "adam_epsilon": options.epsilon,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.clip,
        "optim": "adamw_torch_fused",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def numbers_tokenizer(vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are its ids, with blanks between them (`as_text`)."""
    words = {PADDING: 0, END: 1} | {str(number): number for number in range(2, vocabulary_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=PADDING))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PADDING)


def as_text(tokens: list[int]) -> str:
    """What `numbers_tokenizer` makes these tokens of; texts may be laid end to end."""
    return "".join(f" {END if token == 1 else token}" for token in tokens)


def single_threaded() -> None:
    """As the ranks of tests are; the losses of more threads differ in the last places."""
    torch.set_num_threads(1)
