"""Contender: TRL's `SFTTrainer`, without what only costs it time: nothing recomputed, nothing logged."""

import tempfile
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl
from trl import SFTConfig, SFTTrainer

from bench.sft_workload import Clock, TuningWorkload, examples
from bench.transformers_loop import build
from bench.workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY

IGNORED = -100


class CountingTrainer(SFTTrainer):
    """Counts the tokens that have a label to predict, and adds up the loss of a step."""

    tokens = 0
    loss = 0.0

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Tensor:
        if "position_ids" in inputs:  # rows laid end to end, without padding
            self.tokens += int((inputs["position_ids"] != 0).sum())
        else:
            self.tokens += int(inputs["attention_mask"].sum()) - len(inputs["input_ids"])
        loss = super().training_step(model, inputs, *arguments, **named)
        self.loss += float(loss)
        return loss


class Stopwatch(TrainerCallback):
    """Tells the clock of each step, and ends training when it says so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.trainer: CountingTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        assert self.trainer is not None
        control.should_training_stop = self.clock.step(self.trainer.tokens, self.trainer.loss)
        self.trainer.tokens, self.trainer.loss = 0, 0.0
        return control


def main() -> None:
    workload = TuningWorkload.from_command_line()
    torch.set_num_threads(workload.threads)
    stopwatch = Stopwatch(Clock(workload.seconds))
    rows = [
        {
            "input_ids": example.tokens.tolist(),
            "labels": np.where(example.learned, example.tokens, IGNORED).tolist(),
        }
        for example in examples(workload)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = CountingTrainer(
            model=build(workload),
            args=arguments(workload, folder),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(workload.vocabulary_size),
            callbacks=[stopwatch],
        )
        stopwatch.trainer = trainer
        trainer.train()
    stopwatch.clock.report()


def arguments(workload: TuningWorkload, folder: str) -> SFTConfig:
    rows = workload.micro_batch_size
    return SFTConfig(
        output_dir=folder,
        max_steps=1_000_000,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=workload.sequences // rows,
        max_length=workload.sequence_length,
        packing=workload.packing,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPSILON,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
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


def tokenizer(vocabulary_size: int) -> PreTrainedTokenizerFast:
    """One whose words are its ids: the trainer wants a tokenizer, and asks it for its padding only."""
    words = {str(number): number for number in range(vocabulary_size)}
    model = Tokenizer(WordLevel(words, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="1", pad_token="0", unk_token="0")


if __name__ == "__main__":
    main()
