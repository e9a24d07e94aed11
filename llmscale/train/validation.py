"""What a validation looks at: the task, what is forgotten meanwhile, and what the model writes."""

import math
import operator
import time
from collections.abc import Iterator, Mapping
from functools import reduce

from pydantic import JsonValue

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.loader import BatchSource
from llmscale.engine.engine import Engine, Sums
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.objective import Objective
from llmscale.runtime.hooks import Forgetting, ValidationRecord
from llmscale.train.samples import SampleWriter

KEY = "forgetting_before"
"""Of a checkpoint's progress: the loss on what may be forgotten, before the first step."""


class Validator:
    """Validates the engine's model.

    Args:
        task: held-out data of the task.
        forgetting: held-out text that the model knew before.
        writer: of samples.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        task: BatchSource | None,
        forgetting: BatchSource | None = None,
        writer: SampleWriter | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.task = task
        self.forgetting = forgetting
        self.writer = writer
        self._before: float | None = None

    @property
    def begins_at_start(self) -> bool:
        """There is something to compare with: what the model could before the first step."""
        return self.task is not None and (self.config.task != "pretrain" or self.forgetting is not None)

    def is_due(self, step: int) -> bool:
        every = self.config.train.validate_every
        return self.task is not None and every is not None and step % every == 0

    def restore(self, progress: Mapping[str, JsonValue]) -> None:
        found = progress.get(KEY)
        self._before = found if isinstance(found, float) else None

    def as_progress(self) -> dict[str, JsonValue]:
        return {} if self._before is None else {KEY: self._before}

    def validate(self, step: int) -> ValidationRecord:
        """Of the model after `step` steps. Collective; the same on every rank."""
        assert self.task is not None
        began = time.perf_counter()
        sums = self._sums(self.task)
        loss = sums.mean_loss
        forgetting = None if self.forgetting is None else self._forgetting(self.forgetting)
        samples = [] if self.writer is None else self.writer.write(self.engine)
        return ValidationRecord(
            step=step,
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)) if self.config.task in ("pretrain", "sft") else None,
            seconds=time.perf_counter() - began,
            metrics=self.engine.objective.metrics(sums.others),
            forgetting=forgetting,
            samples=samples,
        )

    def _forgetting(self, source: BatchSource) -> Forgetting:
        loss = self._sums(source, CausalLM()).mean_loss
        if self._before is None:
            self._before = loss
        return Forgetting(loss, loss - self._before)

    def _sums(self, source: BatchSource, objective: Objective | None = None) -> Sums:
        parts = [self.engine.evaluate(batches, objective) for batches in self._batches(source)]
        return reduce(operator.add, parts)

    def _batches(self, source: BatchSource) -> Iterator[list[Batch]]:
        """The first `train.validation_batches` global batches, or as many as one pass over the data has."""
        size = self.config.train.global_batch_size
        count = min(self.config.train.validation_batches, -(-source.samples_per_epoch // size))
        for number in range(count):
            yield source.step_batches(number * size, size)
