"""The training loop: batches in, steps, validations, checkpoints and words to the hooks out.

The position of a run is one number, the samples consumed; step and batch size follow from it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from torch.profiler import record_function

from llmscale.checkpoint.checkpointer import Checkpointer, SaveOutcome
from llmscale.checkpoint.errors import SaveFailed
from llmscale.config.schema import Config
from llmscale.data.batch_size import global_batch_size_at
from llmscale.data.loader import BatchSource
from llmscale.engine import fingerprint
from llmscale.engine.engine import Engine, StepResult
from llmscale.runtime.final import FinalFailure
from llmscale.runtime.hooks import Hook, RunStart, SaveRecord, StepRecord, numbers_of
from llmscale.runtime.meter import Meter
from llmscale.runtime.preempt import agreed
from llmscale.runtime.profiling.phases import DATA, STEP
from llmscale.train.best import Best
from llmscale.train.gates import TuningGate
from llmscale.train.start_gate import check_start
from llmscale.train.validation import Validator


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
        validator: Validator,
        checkpointer: Checkpointer,
        hooks: Hook,
        meter: Meter,
        position: Position,
        best: Best,
        start: RunStart,
    ) -> None:
        self.config = config
        self.engine = engine
        self.training = training
        self.validator = validator
        self.checkpointer = checkpointer
        self.hooks = hooks
        self.meter = meter
        self.position = position
        self.best = best
        self.start = start
        self.last_step = config.train.last_step
        is_tuned_anew = config.peft.method != "none" and position.step == 0
        self.gate = TuningGate(engine) if is_tuned_anew else None

    def run(self) -> bool:
        """Train; returns whether the run is complete (False: a signal came, and the state is saved)."""
        self.hooks.on_start(self.start)
        self.meter.start()
        if self.position.step == 0 and self.validator.begins_at_start and self.best.validated_step is None:
            self._save_if(self._validate() and self.config.checkpoint.keep_best)
        preempted = False
        while not preempted and not self._is_at_end():
            self._step()
            is_best = self.validator.is_due(self.position.step) and self._validate()
            preempted = agreed(self.engine.world.control_group)
            is_due = self._is_due_to_save() or (is_best and self.config.checkpoint.keep_best)
            self._save_if(is_due and not preempted and not self._is_at_end())
            self._report_saves()
        reason = self.best.reason_to_stop(self.config.train.early_stopping)
        if reason is not None and self.position.step < self.last_step:
            self.hooks.on_early_stop(self.position.step, reason)
        complete = self._is_at_end()
        self._save_last()
        self.hooks.on_end(self.position.step, not complete)
        return complete

    def _is_at_end(self) -> bool:
        """After the last step, or where training on would not help."""
        stop = self.best.reason_to_stop(self.config.train.early_stopping)
        return self.position.step >= self.last_step or stop is not None

    def _is_due_to_save(self) -> bool:
        every = self.config.checkpoint.every
        return every is not None and self.position.step % every == 0

    def _save_if(self, is_due: bool) -> None:
        if is_due:
            self._save()
            self.hooks.on_phase("training")

    def _step(self) -> None:
        global_batch_size = global_batch_size_at(self.config.train, self.position.samples)
        with record_function(STEP):
            with record_function(DATA):
                batches = self.training.step_batches(self.position.samples, global_batch_size)
            if self.position.step == 0 and self.config.task in ("reward", "dpo"):
                check_start(self.engine, batches)
            result = self.engine.step(batches)
        if not math.isfinite(result.loss):
            self._refuse_loss(result.loss)
        self.position.step += 1
        if self.gate is not None:
            self.gate.after_step(self.position.step)
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
            extra={**numbers_of(result.metrics), "memory_bytes": speed.memory_bytes},
        )

    def _validate(self) -> bool:
        """Returns whether the loss is the lowest so far."""
        self.hooks.on_phase("validating")
        record = self.validator.validate(self.position.step)
        options = self.config.train.early_stopping
        assert record.loss is not None  # tasks of rewards have a loop of their own
        is_best = self.best.add(record.step, record.loss, options.min_delta if options else 0.0)
        self.hooks.on_validation(record)
        self.meter.start()
        return is_best

    def _save(self) -> None:
        self.hooks.on_phase("saving")
        found = self.engine.fingerprint()
        progress = {
            **self.position.as_progress(self.engine),
            **self.best.as_progress(),
            **self.validator.as_progress(),
            fingerprint.KEY: found and found.as_json(),
        }
        self.checkpointer.save(
            self.position.step, self.engine.pieces_to_save(), progress, self._steps_to_keep()
        )

    def _steps_to_keep(self) -> list[int]:
        if self.best.step is None or not self.config.checkpoint.keep_best:
            return []
        return [self.best.step]

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
