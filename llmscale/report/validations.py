"""What validations tell beside the loss: metrics, forgetting, confusion, samples. No matplotlib."""

from dataclasses import dataclass

from llmscale.report.gather import RunData
from llmscale.runtime.events import Event

ABBREVIATIONS = {"kl": "KL to the reference", "mse": "MSE", "mae": "MAE", "r2": "R²", "sft_loss": "SFT loss"}
"""Names of metrics that are no words."""

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Heads, and rows."""


def numbers(event: Event) -> dict[str, float]:
    """A validation's metrics that are one number each."""
    metrics = event.details.get("metrics", {})
    found = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
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
    """Loss on the task before the first step (or at the first validation) minus the loss now."""
    scores: list[float]
    """Loss on the text that was known before, minus that before the first step."""


def trade(run: RunData) -> Trade | None:
    """None for a run that does not measure forgetting."""
    events = [event for event in run.validations if event.details.get("forgetting")]
    if not events:
        return None
    before = events[0].details["loss"]
    return Trade(
        [event.step or 0 for event in events],
        [before - event.details["loss"] for event in events],
        [event.details["forgetting"]["score"] for event in events],
    )


def validation_table(run: RunData) -> Table:
    """A row a validation."""
    names = metric_names(run)
    has_perplexity = any(event.details.get("perplexity") is not None for event in run.validations)
    forgets = trade(run) is not None
    heads = ["step", "loss", *(["perplexity"] if has_perplexity else []), *map(readable, names)]
    heads += ["loss on known text", "forgetting score"] if forgets else []
    return tuple(heads), [_row(event, names, has_perplexity, forgets) for event in run.validations]


def _row(event: Event, names: list[str], has_perplexity: bool, forgets: bool) -> tuple[str, ...]:
    found, forgetting = numbers(event), event.details.get("forgetting")
    row = [str(event.step), f"{event.details['loss']:.4f}"]
    if has_perplexity:
        perplexity = event.details.get("perplexity")
        row.append("–" if perplexity is None else f"{perplexity:.2f}")
    row += [f"{found[name]:.4f}" if name in found else "–" for name in names]
    if forgets:
        row += [f"{forgetting['loss']:.4f}", f"{forgetting['score']:+.4f}"] if forgetting else ["–", "–"]
    return tuple(row)


def figures_table(run: RunData) -> Table | None:
    """Each number of the validations: of the first one, of that with the lowest loss, and of the last; None
    where there is none."""
    events = run.validations
    if not events:
        return None
    best = min(events, key=lambda event: event.details["loss"])
    places = [("first", events[0]), ("lowest loss", best), ("last", events[-1])]
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
    found: dict[str, float] = {"loss": details["loss"]}
    if details.get("perplexity") is not None:
        found["perplexity"] = details["perplexity"]
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
    """Of the validation with the lowest loss; None where there is no such matrix."""
    events = [event for event in run.validations if event.details.get("metrics", {}).get("confusion")]
    if not events:
        return None
    best = min(events, key=lambda event: event.details["loss"])
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


def samples(run: RunData) -> dict[str, list[tuple[str, str]]]:
    """For each prompt: step and text, step by step."""
    found: dict[str, list[tuple[str, str]]] = {}
    for event in run.validations:
        for sample in event.details.get("samples", []):
            found.setdefault(sample["prompt"], []).append((str(event.step), sample["text"]))
    return found
