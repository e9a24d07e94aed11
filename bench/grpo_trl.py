"""Contender: TRL's `GRPOTrainer`, whose answers transformers' `generate` writes."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl
from trl import GRPOConfig, GRPOTrainer

from bench.grpo_workload import GrpoWorkload, Measured, evenness
from bench.trl_trainers import one_process, options_of


class TimedTrainer(GRPOTrainer):
    def __init__(self, **arguments: Any) -> None:
        self.rollouts: list[float] = []
        self.tokens: list[float] = []
        super().__init__(**arguments)

    def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        completions, *rest = super()._generate_single_turn(*arguments, **named)
        self.rollouts.append(time.perf_counter() - began)
        self.tokens.append(float(sum(map(len, completions))))
        return (completions, *rest)

    def _send_telemetry(self) -> None:
        """Nobody is told of a measurement."""


class StepTimes(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends: list[float] = []
        self.processor: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())
        control.should_training_stop = len(self.ends) == self.steps
        return control


def main() -> None:
    workload = GrpoWorkload.from_command_line()
    torch.set_num_threads(workload.threads)
    one_process()
    times = StepTimes(workload.warm_up_steps + workload.steps)
    with tempfile.TemporaryDirectory() as folder:
        options = options_of(workload, folder)
        del options["max_length"]
        trainer = TimedTrainer(
            model=AutoModelForCausalLM.from_pretrained(workload.place / "model", dtype=torch.float32),
            reward_funcs=evenness,
            args=GRPOConfig(
                **options,
                num_generations=workload.answers,
                max_completion_length=workload.tokens,
                beta=workload.beta,
                remove_unused_columns=False,
            ),
            train_dataset=prompts_of(workload.place),
            processing_class=AutoTokenizer.from_pretrained(workload.place / "tokenizer"),
            callbacks=[times],
        )
        trainer.train()
    first = workload.warm_up_steps
    ends, processor = times.ends[first - 1 :], times.processor[first - 1 :]
    Measured(
        [end - began for began, end in zip(ends, ends[1:])],
        (processor[-1] - processor[0]) / workload.steps,
        trainer.rollouts[first:],
        trainer.tokens[first:],
    ).print()


def prompts_of(place: Path) -> Any:
    return load_dataset("json", data_files=str(place / "prompts.jsonl"), split="train")


if __name__ == "__main__":
    main()
