"""The training loop: batches in, steps, validations, checkpoints and words to the hooks out.

The position of a run is one number, the samples consumed; step and batch size follow from it.
"""

import math
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from pydantic import JsonValue

from llmscale.checkpoint.checkpointer import Checkpointer, SaveOutcome
from llmscale.checkpoint.errors import SaveFailed
from llmscale.config.schema import Config
from llmscale.data.batch_size import global_batch_size_at
from llmscale.data.loader import BatchSource
from llmscale.engine import fingerprint
from llmscale.engine.engine import Engine, StepResult
from llmscale.runtime.final import FinalFailure
from llmscale.runtime.hooks import Hook, RunStart, SaveRecord, StepRecord, ValidationRecord
from llmscale.runtime.meter import Meter
from llmscale.runtime.preempt import agreed


@dataclass
class Position:
    """Where a run stands."""

    step: int = 0
    samples: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, progress: Mapping[str, JsonValue]) -> "Position":
        return cls(**{name: int(progress[name]) for name in ("step", "samples", "tokens")})  # pyright: ignore[reportArgumentType]

    def as_progress(self, engine: Engine) -> dict[str, JsonValue]:
        return {"step": self.step, "samples": self.samples, "tokens": self.tokens, **engine.counters()}


class LossNotFinite(FinalFailure):
    """The loss is NaN or infinite: from here on all is lost, and the newest checkpoint leads here again."""


class TrainingLoop:
    """Trains from `position` to `train.stop_at` (or `train.steps`), or until a signal asks to stop."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        training: BatchSource,
        validation: BatchSource | None,
        checkpointer: Checkpointer,
        hooks: Hook,
        meter: Meter,
        position: Position,
        start: RunStart,
    ) -> None:
        self.config = config
        self.engine = engine
        self.training = training
        self.validation = validation
        self.checkpointer = checkpointer
        self.hooks = hooks
        self.meter = meter
        self.position = position
        self.start = start
        self.last_step = config.train.stop_at or config.train.steps

    def run(self) -> bool:
        """Train; returns whether the run is complete (False: a signal came, and the state is saved)."""
        self.hooks.on_start(self.start)
        self.meter.start()
        preempted = False
        while self.position.step < self.last_step and not preempted:
            self._step()
            if self._due(self.config.train.validate_every):
                self._validate()
            preempted = agreed(self.engine.world.control_group)
            if (
                self._due(self.config.checkpoint.every)
                and self.position.step < self.last_step
                and not preempted
            ):
                self._save()
                self.hooks.on_phase("training")
            self._report_saves()
        self._save_last()
        self.hooks.on_end(self.position.step, preempted)
        return self.position.step >= self.last_step

    def _due(self, every: int | None) -> bool:
        return every is not None and self.position.step % every == 0

    def _step(self) -> None:
        global_batch_size = global_batch_size_at(self.config.train, self.position.samples)
        batches = self.training.step_batches(self.position.samples, global_batch_size)
        result = self.engine.step(batches)
        if not math.isfinite(result.loss):
            self._refuse_loss(result.loss)
        self.position.step += 1
        self.position.samples += global_batch_size
        self.position.tokens += result.tokens
        self.hooks.on_step(self._record(result))

    def _refuse_loss(self, loss: float) -> None:
        """Let a save of a step before finish, then end the run; all ranks see the same loss.

        Raises:
            LossNotFinite: always.
        """
        self.checkpointer.wait()
        self._report_saves()
        raise LossNotFinite(
            f"the loss of step {self.position.step + 1} is {loss}; lower optimizer.lr, lengthen "
            "optimizer.warmup_steps, or look at the samples of that step"
        )

    def _record(self, result: StepResult) -> StepRecord:
        speed = self.meter.stop(result.tokens)
        return StepRecord(
            step=self.position.step,
            samples=self.position.samples,
            tokens=self.position.tokens,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            step_seconds=speed.step_seconds,
            tokens_per_second=speed.tokens_per_second,
            mfu=speed.mfu,
            extra={"memory_bytes": speed.memory_bytes},
        )

    def _validate(self) -> None:
        """Mean loss over the first `train.validation_batches` global batches of the validation data."""
        if self.validation is None:
            return
        self.hooks.on_phase("validating")
        began = time.perf_counter()
        size = self.config.train.global_batch_size
        batches = (
            self.validation.step_batches(number * size, size)
            for number in range(self.config.train.validation_batches)
        )
        loss = reduce(operator.add, map(self.engine.evaluate, batches)).mean_loss
        seconds = time.perf_counter() - began
        self.hooks.on_validation(
            ValidationRecord(self.position.step, loss, math.exp(min(loss, 700.0)), seconds)
        )
        self.meter.start()

    def _save(self) -> None:
        self.hooks.on_phase("saving")
        found = self.engine.fingerprint()
        progress = {**self.position.as_progress(self.engine), fingerprint.KEY: found and found.as_json()}
        self.checkpointer.save(self.position.step, self.engine.pieces_to_save(), progress)

    def _save_last(self) -> None:
        """The last save must succeed: what it holds is all that is left of the run."""
        self._save()
        outcome = self.checkpointer.wait()
        self._report_saves()
        if outcome is not None and outcome.state == "failed":
            raise SaveFailed(f"the last save, of step {outcome.step}, failed: {outcome.reason}")

    def _report_saves(self) -> None:
        for outcome in self.checkpointer.poll():
            if outcome.state == "committed":
                self.hooks.on_save(_save_record(outcome))


def _save_record(outcome: SaveOutcome) -> SaveRecord:
    return SaveRecord(outcome.step, outcome.seconds, f"checkpoints/step-{outcome.step:08d}")
