"""What runs on rewards measure, step by step. No matplotlib."""

from bisect import bisect_left

from llmscale.report.gather import RunData

SECONDS = "seconds_"
"""How columns begin that tell how long a part of a step took."""
OTHER = "other"
REWARD = "reward_"
WHOLE = ("reward_mean", "reward_std", "reward_best")
"""Columns of the whole reward; the others that begin so are its parts."""


def reward_parts(run: RunData) -> list[str]:
    """Columns of the parts that rewards are made of."""
    names = dict.fromkeys(name for record in run.metrics for name in record)
    return [name for name in names if name.startswith(REWARD) and name not in WHOLE]


def held_out(run: RunData, name: str) -> tuple[list[int], list[float]]:
    """Steps of validations that have the number, and it."""
    found: dict[int, float] = {}
    for event in run.validations:
        value = event.details.get("metrics", {}).get(name)
        if value is not None:
            found[event.step or 0] = value
    return list(found), list(found.values())


def seconds_of_parts(run: RunData) -> dict[str, list[float]]:
    """Seconds of each part of each step, by name: those that the steps tell, what is left of them, and
    validating and saving. Empty where steps tell none."""
    names = dict.fromkeys(name for record in run.metrics for name in record if name.startswith(SECONDS))
    found = {name.removeprefix(SECONDS): [record.get(name, 0.0) for record in run.metrics] for name in names}
    if not found:
        return {}
    told = [sum(column[place] for column in found.values()) for place in range(len(run.metrics))]
    found[OTHER] = [max(0.0, record["step_seconds"] - seconds) for record, seconds in zip(run.metrics, told)]
    return found | {
        part: spent
        for part, kind in (("validating", "validated"), ("saving", "saved"))
        if any(spent := _spent_on(run, kind))
    }


def _spent_on(run: RunData, kind: str) -> list[float]:
    """What such events took, spread evenly over the steps since the one before: that is what a step costs."""
    spent = {event.step or 0: float(event.details["seconds"]) for event in run.events if event.kind == kind}
    ends = sorted(step for step in spent if step > 0)
    begins = [0, *ends[:-1]]
    found: list[float] = []
    for step in run.steps:
        place = bisect_left(ends, step)
        found.append(spent[ends[place]] / (ends[place] - begins[place]) if place < len(ends) else 0.0)
    return found
