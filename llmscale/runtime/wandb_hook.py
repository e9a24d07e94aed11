"""Metrics to Weights & Biases. Training goes on whatever becomes of it."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from llmscale.config.schema import Config
from llmscale.runtime.hooks import Hook, RunStart, Sample, StepRecord, ValidationRecord

logger = logging.getLogger(__name__)


Mode = Literal["online", "offline", "off"]


def wandb_mode(config: Config) -> Mode:
    """`online`, `offline` or `off`, as `logging.wandb` and this machine have it."""
    asked = config.logging.wandb
    if asked == "off" or importlib.util.find_spec("wandb") is None:
        return "off"
    if asked == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return asked


class WandbHook(Hook):
    """Sends every step and validation; an error turns it off with one warning."""

    def __init__(self, config: Config, folder: Path, mode: Mode) -> None:
        self.config = config
        self.folder = folder
        self.mode = mode
        self.run: Any = None
        self.samples: dict[str, list[tuple[int, Sample]]] = {}
        """Of each table: steps, and what was written then."""

    def on_start(self, start: RunStart) -> None:
        self._attempt(self._open)

    def on_step(self, record: StepRecord) -> None:
        if self.run is not None:
            numbers = {
                "loss": record.loss,
                "grad_norm": record.grad_norm,
                "lr": record.lr,
                "tokens": record.tokens,
                "samples": record.samples,
                "step_seconds": record.step_seconds,
                "tokens_per_second": record.tokens_per_second,
                **({} if record.mfu is None else {"mfu": record.mfu}),
                **record.extra,
            }
            self._attempt(lambda: self.run.log(numbers, step=record.step))

    def on_samples(self, step: int, samples: Sequence[Sample]) -> None:
        if self.run is not None:
            name = "training_samples"
            self._attempt(lambda: self.run.log({name: self._table(name, step, samples)}, step=step))

    def on_validation(self, record: ValidationRecord) -> None:
        if self.run is not None:
            self._attempt(lambda: self.run.log(self._of_validation(record), step=record.step))

    def _of_validation(self, record: ValidationRecord) -> dict[str, Any]:
        """Numbers by name, and the table of all samples so far."""
        aims = {"loss": record.loss, "reward": record.reward, "perplexity": record.perplexity}
        found: dict[str, Any] = {
            f"validation/{name}": value for name, value in aims.items() if value is not None
        }
        for name, value in record.metrics.items():
            if isinstance(value, (int, float)):
                found[f"validation/{name}"] = value
        if record.forgetting is not None:
            found["forgetting/loss"] = record.forgetting.loss
            found["forgetting/score"] = record.forgetting.score
        if record.samples:
            found["samples"] = self._table("samples", record.step, record.samples)
        return found

    def _table(self, name: str, step: int, samples: Sequence[Sample]) -> Any:
        """All samples so far, with their rewards and the parts of those."""
        import wandb  # noqa: PLC0415 -- optional, and slow to import

        kept = self.samples.setdefault(name, [])
        kept += [(step, sample) for sample in samples]
        parts = list(dict.fromkeys(part for _, sample in kept for part in sample.rewards))
        rewards = ["reward", *parts] if parts or any(sample.reward is not None for _, sample in kept) else []
        # A table that was sent cannot be added to.
        table = wandb.Table(columns=["step", "prompt", "text", *rewards])
        for at, sample in kept:
            values = [sample.reward, *(sample.rewards.get(part) for part in parts)] if rewards else []
            table.add_data(at, sample.prompt, sample.text, *values)
        return table

    def on_end(self, step: int, preempted: bool) -> None:
        if self.run is not None:
            self._attempt(lambda: self.run.finish())

    def _open(self) -> None:
        import wandb  # noqa: PLC0415 -- optional, and slow to import

        self.run = wandb.init(
            project=self.config.logging.wandb_project,
            name=self.folder.name,
            dir=self.folder,
            config=self.config.model_dump(mode="json"),
            mode="online" if self.mode == "online" else "offline",
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a service may raise, it must not end a training run
            logger.warning("wandb is off from here on: %s: %s", type(error).__name__, error)
            self.run = None
