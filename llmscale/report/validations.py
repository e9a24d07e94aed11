"""What validations tell beside the loss: metrics, forgetting, confusion, samples. No matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmscale.report.gather import RunData, aim, best_of
from llmscale.runtime.describe import REWARD
from llmscale.runtime.events import Event

ABBREVIATIONS = {"kl": "KL to the reference", "mse": "MSE", "mae": "MAE", "r2": "R²", "sft_loss": "SFT loss"}
"""Names of metrics that are no words."""
SHOWN_STEPS = 8
"""Of the training, with samples."""

AIMS = {"reward": 4, "loss": 4, "perplexity": 2}
"""What a validation is judged by, and decimals of it."""

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Heads, and rows."""


def numbers(event: Event) -> dict[str, float]:
    """A validation's metrics that are one number each."""
    metrics = event.details.get("metrics", {})
    told = {name: value for name, value in metrics.items() if name != REWARD}
    found = {name: float(value) for name, value in told.items() if isinstance(value, (int, float))}
    if event.step == 0 and "kl" in found:
        # All rewards of the reference itself are 0 but for rounding, and no answer is the better one.
        found.pop("accuracy", None)
    return found


def metric_names(run: RunData) -> list[str]:
    return list(dict.fromkeys(name for event in run.validations for name in numbers(event)))


def readable(name: str) -> str:
    """`macro_f1` → `Macro F1`."""
    words = ABBREVIATIONS.get(name) or name.replace("_", " ").replace("f1", "F1")
    return words[:1].upper() + words[1:]


@dataclass(frozen=True)
class Trade:
    """Over the steps of the validations: what was won on the task, and what was lost of before."""

    steps: list[int]
    gains: list[float]
    """By how much the loss on the task is lower than before the first step (or at the first validation); of
    rewards, by how much they are higher."""
    scores: list[float]
    """Loss on the text that was known before, minus that before the first step."""


def trade(run: RunData) -> Trade | None:
    """None for a run that does not measure forgetting."""
    events = [event for event in run.validations if event.details.get("forgetting")]
    if not events:
        return None
    before = aim(events[0])
    return Trade(
        [event.step or 0 for event in events],
        [aim(event) - before for event in events],
        [event.details["forgetting"]["score"] for event in events],
    )


def validation_table(run: RunData) -> Table:
    """A row a validation."""
    names = metric_names(run)
    aims = [name for name in AIMS if any(event.details.get(name) is not None for event in run.validations)]
    forgets = trade(run) is not None
    heads = ["step", *aims, *map(readable, names)]
    heads += ["loss on known text", "forgetting score"] if forgets else []
    return tuple(heads), [_row(event, aims, names, forgets) for event in run.validations]


def _row(event: Event, aims: list[str], names: list[str], forgets: bool) -> tuple[str, ...]:
    found, forgetting = numbers(event), event.details.get("forgetting")
    row = [str(event.step)]
    for name in aims:
        value = event.details.get(name)
        row.append("–" if value is None else f"{value:.{AIMS[name]}f}")
    row += [f"{found[name]:.4f}" if name in found else "–" for name in names]
    if forgets:
        row += [f"{forgetting['loss']:.4f}", f"{forgetting['score']:+.4f}"] if forgetting else ["–", "–"]
    return tuple(row)


def figures_table(run: RunData) -> Table | None:
    """Each number of the validations: of the first one, of the best, and of the last; None where there is
    none."""
    events = run.validations
    if not events:
        return None
    title = "lowest loss" if events[-1].details.get("reward") is None else "highest reward"
    places = [("first", events[0]), (title, best_of(events)), ("last", events[-1])]
    columns: dict[int | None, list[str]] = {}
    for name, event in places:
        columns.setdefault(event.step, []).append(name)
    told = {event.step: _figures(event) for _, event in places}
    names = list(dict.fromkeys(name for one in reversed(told.values()) for name in one))
    heads = ("", *(f"{', '.join(called)} (step {step})" for step, called in columns.items()))
    rows = [(readable(name), *(_shown(told[step].get(name)) for step in columns)) for name in names]
    return heads, rows


def _figures(event: Event) -> dict[str, float]:
    details = event.details
    found: dict[str, float] = {name: details[name] for name in AIMS if details.get(name) is not None}
    found |= numbers(event)
    if details.get("forgetting"):
        found["forgetting_score"] = details["forgetting"]["score"]
    return found


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


@dataclass(frozen=True)
class Confusion:
    """How often texts of each label were given each label."""

    step: int
    labels: list[str]
    counts: list[list[int]]
    """A row a true label, a column a given one."""
    f1: dict[str, float]


def confusion(run: RunData) -> Confusion | None:
    """Of the best validation; None where there is no such matrix."""
    events = [event for event in run.validations if event.details.get("metrics", {}).get("confusion")]
    if not events:
        return None
    best = best_of(events)
    metrics = best.details["metrics"]
    return Confusion(best.step or 0, list(metrics["f1"]), metrics["confusion"], metrics["f1"])


def label_table(found: Confusion) -> Table:
    """Precision, recall and F1 of each label."""
    rows: list[tuple[str, ...]] = []
    for place, label in enumerate(found.labels):
        right, there = found.counts[place][place], sum(found.counts[place])
        given = sum(row[place] for row in found.counts)
        precision, recall = right / max(given, 1), right / max(there, 1)
        rows.append((label, str(there), f"{precision:.3f}", f"{recall:.3f}", f"{found.f1[label]:.3f}"))
    return ("label", "texts", "precision", "recall", "F1"), rows


def samples(run: RunData) -> dict[str, Table]:
    """For each prompt of the validations what was written, step by step."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for event in run.validations:
        for sample in event.details.get("samples", []):
            found.setdefault(sample["prompt"], []).append((event.step or 0, sample))
    return {prompt: _sample_table(kept, ("text",)) for prompt, kept in found.items()}


def training_samples(run: RunData) -> Table | None:
    """Of steps from the first to the last, what was learned from; None where nothing is kept."""
    steps = list(run.samples)
    if not steps:
        return None
    places = {round(place * (len(steps) - 1) / (SHOWN_STEPS - 1)) for place in range(SHOWN_STEPS)}
    kept = [(steps[place], sample) for place in sorted(places) for sample in run.samples[steps[place]]]
    return _sample_table(kept, ("prompt", "text"))


def _sample_table(kept: Sequence[tuple[int, dict[str, Any]]], told: tuple[str, ...]) -> Table:
    """
    Args:
        kept: steps, and samples of then.
        told: fields that are texts.
    """
    parts = list(dict.fromkeys(part for _, sample in kept for part in sample.get("rewards", {})))
    rewards = ["reward", *parts] if any("reward" in sample for _, sample in kept) else []
    rows: list[tuple[str, ...]] = []
    for step, sample in kept:
        values = [sample.get("reward"), *(sample.get("rewards", {}).get(part) for part in parts)]
        numbers = ["–" if value is None else f"{value:.3g}" for value in values] if rewards else []
        rows.append((str(step), *(sample[name] for name in told), *numbers))
    return ("step", *told, *rewards), rows
