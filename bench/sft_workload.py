"""What both contenders of the fine-tuning benchmark train on, and how their speed is counted."""

import json
import time
from dataclasses import dataclass, field

import numpy as np

from bench.workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Workload
from llmscale.config.schema import Config
from llmscale.data.examples import Example

EXAMPLES = 1024
MEDIAN_LENGTH, SPREAD = 150, 0.5
"""Lengths are log-normal, as those of real conversations are roughly."""
WARM_UP_STEPS = 3
"""Not counted."""


@dataclass(frozen=True)
class TuningWorkload(Workload):
    packing: bool = False


def examples(workload: TuningWorkload) -> list[Example]:
    """The same made-up ones for everyone; of each the second half is learned."""
    generator = np.random.default_rng(1)
    lengths = MEDIAN_LENGTH * np.exp(SPREAD * generator.standard_normal(EXAMPLES))
    return [
        Example(
            generator.integers(4, workload.vocabulary_size, length).astype(np.int32),
            np.arange(length) >= length // 2,
        )
        for length in lengths.astype(int).clip(8, workload.sequence_length)
    ]


def config_of(workload: TuningWorkload) -> Config:
    return Config.model_validate(
        {
            "task": "sft",
            "sft": {"packing": workload.packing},
            "model": workload.model.model_dump(),
            "train": {
                # No end in sight: the learning rate stays where it is.
                "steps": 1_000_000,
                "global_batch_size": workload.sequences,
                "micro_batch_size": workload.micro_batch_size,
                "sequence_length": workload.sequence_length,
                "precision": workload.precision,
            },
            "optimizer": {
                "lr": LEARNING_RATE,
                "betas": BETAS,
                "epsilon": EPSILON,
                "weight_decay": WEIGHT_DECAY,
                "clip": CLIP,
                "schedule": "constant",
            },
        }
    )


@dataclass
class Clock:
    """Useful tokens (those with a label, padding left out) over the time from step to step."""

    seconds: float
    """How long is measured."""
    losses: list[float] = field(default_factory=list)
    _tokens: int = 0
    _began: float = 0.0
    _elapsed: float = 0.0

    def step(self, tokens: int, loss: float) -> bool:
        """Called after each step; returns whether it is time to stop."""
        self.losses.append(loss)
        now = time.perf_counter()
        if len(self.losses) <= WARM_UP_STEPS:
            self._began = now
            return False
        self._tokens += tokens
        self._elapsed = now - self._began
        return self._elapsed >= self.seconds and len(self.losses) >= 2 * WARM_UP_STEPS

    def report(self) -> None:
        """What was measured, as the last line."""
        result = {
            "tokens_per_second": self._tokens / self._elapsed,
            "steps": len(self.losses) - WARM_UP_STEPS,
            "losses": self.losses[:5],
        }
        print(json.dumps(result), flush=True)
