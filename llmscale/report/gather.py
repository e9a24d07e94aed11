"""A run folder's files as what a report shows. No torch, no matplotlib."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from llmscale.config.load import read_resolved
from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config
from llmscale.runtime.describe import duration, quantity, validation_numbers
from llmscale.runtime.events import Event, read_events
from llmscale.runtime.metrics import Metrics, read_metrics
from llmscale.runtime.profiling.breakdown import Breakdown
from llmscale.runtime.profiling.files import read_breakdowns
from llmscale.runtime.sample_file import read_samples

SMOOTHING_PARTS = 40
"""The smoothed loss averages a fortieth of the run to either side."""


@dataclass(frozen=True)
class RunData:
    name: str
    config: Config
    metrics: list[Metrics]
    events: list[Event]
    samples: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """By step: some of what was learned from, with rewards."""
    profiles: list[Breakdown] = field(default_factory=list)

    @property
    def is_on_rewards(self) -> bool:
        return self.config.task == "rlhf"

    @property
    def steps(self) -> list[int]:
        return [record["step"] for record in self.metrics]

    def column(self, key: str) -> list[float]:
        """One number a step; not-a-number where it is missing."""
        return [float("nan") if record.get(key) is None else float(record[key]) for record in self.metrics]

    def has(self, key: str) -> bool:
        return any(record.get(key) is not None for record in self.metrics)

    def is_ever(self, key: str) -> bool:
        """It is there, and not 0 at every step."""
        return any(record.get(key) for record in self.metrics)

    @property
    def validations(self) -> list[Event]:
        """Newest last; of a step that was repeated after a restart only the last validation."""
        by_step = {event.step: event for event in self.events if event.kind == "validated"}
        return [by_step[step] for step in sorted(by_step, key=lambda step: step or 0)]


def gather(folder: Path) -> RunData:
    config = read_resolved(folder / "config.yaml")
    return RunData(
        folder.name,
        config,
        read_metrics(folder),
        read_events(folder),
        read_samples(folder),
        read_breakdowns(folder),
    )


def aim(validation: Event) -> float:
    """What is to grow: the reward, or what the loss falls by."""
    reward = validation.details.get("reward")
    return -validation.details["loss"] if reward is None else reward


def best_of(validations: Sequence[Event]) -> Event:
    """The first of the highest reward, or of the lowest loss."""
    return max(validations, key=aim)


def smoothed(values: list[float]) -> list[float]:
    """Mean over a window around each step, smaller at the ends: unlike a running average it does not lag."""
    reach = len(values) // SMOOTHING_PARTS
    means: list[float] = []
    for index in range(len(values)):
        half = min(reach, index, len(values) - 1 - index)
        window = values[index - half : index + half + 1]
        means.append(sum(window) / len(window))
    return means


def summary(run: RunData) -> list[tuple[str, str]]:
    """The numbers that a reader looks for first."""
    rows = [("task", run.config.task), ("model", model_line(run.config)), ("layout", layout_line(run.config))]
    if not run.metrics:
        return [*rows, ("steps", "none yet")]
    last = run.metrics[-1]
    rows += [
        ("steps", f"{last['step']} of {last.get('steps', run.config.train.last_step)}"),
        ("tokens", quantity(last["tokens"])),
        *_course(run),
    ]
    if run.validations:
        rows.append(("validation", ", ".join(validation_numbers(run.validations[-1].details))))
        best = best_of(run.validations)
        rows.append(("best", f"{next(validation_numbers(best.details))} at step {best.step}"))
    early = [event for event in run.events if event.kind == "stopped_early"]
    if early:
        rows.append(("stopped early", early[-1].details["cause"]))
    rows.append(("speed", f"{quantity(median(run.column('tokens_per_second')))} tokens/s (median)"))
    if run.has("mfu"):
        rows.append(("MFU", f"{median(known(run.column('mfu'))):.1%} (median)"))
    if run.has("memory_bytes"):
        whose = "driver" if run.is_on_rewards else "rank 0"
        rows.append(("memory", f"{max(known(run.column('memory_bytes'))) / 2**30:.2f} GiB ({whose})"))
    rows.append(("training time", duration(sum(run.column("step_seconds")))))
    restarts = sum(event.kind == "restarted" for event in run.events)
    failures = sum(event.kind == "failed" for event in run.events)
    return [*rows, ("failures", f"{failures}, restarted {restarts} times")]


def _course(run: RunData) -> Iterator[tuple[str, str]]:
    """From where to where: of the loss, or of what a run on rewards is judged by."""
    numbers = {
        "reward": "reward_mean",
        "KL to the reference": "kl_answer",
        "tokens an answer": "answer_tokens",
    }
    for called, name in numbers.items() if run.is_on_rewards else [("loss", "loss")]:
        values = known(run.column(name))
        if values:
            yield called, f"{values[0]:.4f} → {values[-1]:.4f}"


def known(values: list[float]) -> list[float]:
    return [value for value in values if value == value]


def model_line(config: Config) -> str:
    model = config.model
    size = f"{model.layers} layers × {model.hidden_size}, {model.heads} heads"
    return f"{model.family} {model.preset or ''}".strip() + f", {size}, {config.train.precision}"


def layout_line(config: Config) -> str:
    if config.task == "rlhf":
        pools = pools_of(config).items()
        return "; ".join(f"{name}: {', '.join(pool.roles)} on {pool.processes}" for name, pool in pools)
    parallel = config.parallel
    axes = [("tensor", parallel.tensor), ("pipeline", parallel.pipeline), ("data", config.data_parallel)]
    ranks = " × ".join(f"{name} {size}" for name, size in axes)
    extras = [f"ZeRO-{config.zero.stage}"]
    if parallel.sequence:
        extras.append("sequence parallel")
    if parallel.interleave > 1:
        extras.append(f"interleaved × {parallel.interleave}")
    return f"{config.world_size} ranks: {ranks}, {', '.join(extras)}"


def changed_settings(config: Config) -> list[tuple[str, str]]:
    """Every key whose value is not the default."""
    return list(_differences(config.model_dump(mode="json"), Config().model_dump(mode="json"), ""))


def _differences(value: Any, default: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, dict) and isinstance(default, dict):
        return [
            row
            for name in value
            for row in _differences(value[name], default.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if value == default else [(key, str(value))]
