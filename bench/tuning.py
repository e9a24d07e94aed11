"""What the contenders of fine-tuning benchmarks have in common: how speed is counted, and the config."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Workload
from llmscale.config.schema import Config

WARM_UP_STEPS = 3
"""Not counted."""


@dataclass
class Clock:
    """What a contender counts, such as tokens, over the time from step to step."""

    seconds: float
    """How long is measured."""
    now: Callable[[], float] = time.perf_counter
    losses: list[float] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)
    _began: float = 0.0
    _elapsed: float = 0.0

    def step(self, loss: float, counts: Mapping[str, int]) -> bool:
        """Called after each step; returns whether it is time to stop."""
        self.losses.append(loss)
        now = self.now()
        if len(self.losses) <= WARM_UP_STEPS:
            self._began = now
            return False
        self._counts.update(counts)
        self._elapsed = now - self._began
        return self._elapsed >= self.seconds and len(self.losses) >= 2 * WARM_UP_STEPS

    def report(self) -> None:
        """What was measured, as the last line; `tokens` are told as `tokens_per_second`."""
        speeds = {f"{name}_per_second": count / self._elapsed for name, count in self._counts.items()}
        steps = len(self.losses) - WARM_UP_STEPS
        print(json.dumps({**speeds, "steps": steps, "losses": self.losses[:5]}), flush=True)


def config_of(workload: Workload, rows_a_step: int, **sections: Any) -> Config:
    """
    Args:
        sections: the task, and what is its own.
    """
    return Config.model_validate(
        {
            "model": workload.model.model_dump(),
            "train": {
                # No end in sight: the learning rate stays where it is.
                "steps": 1_000_000,
                "global_batch_size": rows_a_step,
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
            **sections,
        }
    )
