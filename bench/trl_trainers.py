"""What all of TRL's trainers have in common here: nothing that only costs them time, and a stopwatch."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl

from bench.rounds import rank_variables
from bench.tuning import Clock, config_of
from bench.workload import Workload
from tests.peers_trl import arguments_of


class Counting(Trainer):
    """Put before one of TRL's trainers: counts what a step reads, and adds up its loss."""

    def __init__(self, **arguments: Any) -> None:
        self.counts: Counter[str] = Counter()
        self.loss = 0.0
        super().__init__(**arguments)

    def counts_of(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Of a microbatch."""
        raise NotImplementedError

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Tensor:
        self.counts.update(self.counts_of(inputs))
        loss = super().training_step(model, inputs, *arguments, **named)
        self.loss += float(loss)
        return loss

    def train_by(self, clock: Clock) -> None:
        """Until the clock says that it is enough; then it reports."""
        self.add_callback(Stopwatch(clock, self))
        self.train()
        clock.report()

    def _send_telemetry(self) -> None:
        """Nobody is told of a measurement."""


class Stopwatch(TrainerCallback):
    def __init__(self, clock: Clock, trainer: Counting) -> None:
        self.clock = clock
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        control.should_training_stop = self.clock.step(self.trainer.loss, self.trainer.counts)
        self.trainer.counts, self.trainer.loss = Counter(), 0.0
        return control


def one_process() -> None:
    """Accelerate wraps the model in DDP where there are the variables of a rank, were it the only one."""
    for name in rank_variables(0, 1, 0, 1).keys() - {"OMP_NUM_THREADS"}:
        os.environ.pop(name, None)


def options_of(workload: Workload, folder: str) -> dict[str, Any]:
    """For a trainer's options.

    Args:
        workload: whose `sequences` are the examples of a step, and `micro_batch_size` those at once.
        folder: for what the trainer writes.
    """
    config = config_of(workload, workload.sequences)
    common = arguments_of(config, Path(folder), workload.micro_batch_size, workload.sequences)
    return {**common, "lr_scheduler_type": "constant"}
