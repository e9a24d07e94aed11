"""What runs on preferences measure: which numbers belong into one picture, and how sure they are with what
right. No matplotlib."""

from dataclasses import dataclass

from llmscale.report.gather import RunData, best_of
from llmscale.report.validations import Table, metric_names, numbers


@dataclass(frozen=True)
class Sides:
    """A number of chosen and of rejected answers."""

    title: str
    chosen: str
    rejected: str
    is_compared: bool = True
    """Their distance is what is learned. Else their sizes depend on the answers more than on the model: of
    training, where each step has others, they say nothing."""
    unit: str = ""


SIDES = (
    Sides("Rewards", "chosen_reward", "rejected_reward"),
    Sides("Scores", "chosen_score", "rejected_score"),
    Sides(
        "Log-probabilities of answers",
        "chosen_log_probability",
        "rejected_log_probability",
        False,
        "nats an answer",
    ),
)
DRAWN = ("accuracy", "margin", "kl", *(name for side in SIDES for name in (side.chosen, side.rejected)))
"""Numbers that have a place in those pictures: the margin is the distance of the two sides."""


def is_on_preferences(run: RunData) -> bool:
    return run.config.task in ("reward", "dpo")


def measures(run: RunData, name: str) -> bool:
    """In its steps or in its validations."""
    return run.has(name) or name in metric_names(run)


def over_steps(run: RunData, name: str) -> tuple[list[int], list[float]]:
    """Steps that have the number, and it."""
    known = [(record["step"], record[name]) for record in run.metrics if record.get(name) is not None]
    if name == "accuracy" and run.has("kl"):
        # The first step's is that of the reference itself, which tells nothing (`numbers`).
        known = [(step, value) for step, value in known if step > 1]
    return [step for step, _ in known], [value for _, value in known]


def over_validations(run: RunData, name: str) -> tuple[list[int], list[float]]:
    """Steps, and the number at each."""
    events = [event for event in run.validations if name in numbers(event)]
    return [event.step or 0 for event in events], [numbers(event)[name] for event in events]


@dataclass(frozen=True)
class Bin:
    """Comparisons of which a model is sure to much the same degree."""

    count: float
    confidence: float
    """Mean over them, 1/2 to 1."""
    accuracy: float
    """How often it is right."""


@dataclass(frozen=True)
class Calibration:
    step: int
    error: float
    """Expected calibration error: the mean distance of confidence and accuracy."""
    bins: list[Bin]


def calibration(run: RunData) -> Calibration | None:
    """Of the best validation; None where there is none such."""
    events = [event for event in run.validations if event.details.get("metrics", {}).get("calibration")]
    if not events:
        return None
    best = best_of(events)
    metrics = best.details["metrics"]
    bins = [Bin(one["count"], one["confidence"], one["accuracy"]) for one in metrics["calibration"]]
    return Calibration(best.step or 0, metrics["calibration_error"], bins)


def calibration_table(found: Calibration) -> Table:
    rows = [
        (
            f"{one.confidence:.3f}",
            f"{one.accuracy:.3f}",
            f"{one.accuracy - one.confidence:+.3f}",
            f"{one.count:,.0f}",
        )
        for one in found.bins
    ]
    return ("confidence", "accuracy", "difference", "comparisons"), rows
