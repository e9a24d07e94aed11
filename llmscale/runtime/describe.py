"""Events, numbers and times as people read them. No torch."""

from collections.abc import Iterator, Mapping
from typing import Any

REWARD = "reward_mean"
"""The metric of a validation that is its `reward`, and is told as that."""


def describe_event(kind: str, step: int | None, details: Mapping[str, Any]) -> str:
    """One line about an event."""
    if kind == "resumed":
        return f"resumed from step {step}"
    if kind == "prepared":
        return "data: " + " / ".join(data_lines(details["parts"]))
    if kind == "referred":
        answers, known = details["answers"], details["known"]
        share = f"{answers:,}" if known == answers else f"{known:,} of {answers:,}"
        return f"reference model, {details['data']}: {share} answers in {duration(details['seconds'])}"
    if kind == "tuned":
        trained, parameters = details["trained_parameters"], details["parameters"]
        share = f"{trained:,} trained parameters, {trained / parameters:.3%} of the model's {parameters:,}"
        return f"{details['peft']}: {share}"
    if kind == "saved":
        return f"saved step {step} in {details['seconds']:.1f} s"
    if kind == "validated":
        return f"validation at step {step}: " + ", ".join(validation_numbers(details))
    if kind == "stopped_early":
        return f"stopped early at step {step}: {details['cause']}"
    if kind in ("failed", "hanging", "straggling"):
        return f"{kind} at step {step or 0}: {_culprit(details)}{details.get('cause', '')}"
    if kind == "profiled":
        steps = f"step {step}" if details["first"] == step else f"steps {details['first']}–{step}"
        return f"profiled {steps}: {details['trace']}"
    if kind == "not_profiled":
        return f"warning: nothing is profiled: {details['cause']}"
    if kind == "constant_answer":
        return f"warning: {details['cause']}"
    if kind == "worker_lost":
        who = f"{' and '.join(details['roles'])} (pool {details['pool']})"
        when = "" if step is None else f" after step {step}"
        return f"worker lost{when}: {who}, {_culprit(details)}{details['cause']}"
    if kind == "pool_restarted":
        return (
            f"restarted pool {details['pool']} ({', '.join(details['roles'])}) in {details['seconds']:.1f} s"
        )
    if kind == "requeued":
        return f"requeued ({details.get('requeue', '?')}): {details.get('cause', '')}"
    if kind == "node_lost":
        return f"node lost at step {step or 0}: {details.get('cause', details.get('host', ''))}"
    if kind == "node_joined":
        return f"node joined at step {step or 0}: {details.get('host', '')}"
    if kind == "preflight_failed":
        return f"preflight failed: {details.get('cause', '')}"
    if kind == "submitted":
        return "submitted"
    about = f": {details['cause']}" if "cause" in details else ""
    return (kind if step is None else f"{kind} at step {step}") + about


def data_lines(parts: Mapping[str, Any]) -> Iterator[str]:
    """What became of the records of each part of the data (`train-0`, …)."""
    for name, counts in parts.items():
        left_out = [
            f"{times:,} {reason.replace('_', ' ')}" for reason, times in counts["left_out"].items() if times
        ]
        changed = [f"{times:,}: {note}" for note, times in counts["notes"].items()]
        told = f"; left out {', '.join(left_out)}" if left_out else ""
        told += f"; {'; '.join(changed)}" if changed else ""
        yield f"{name}: {counts['examples']:,} examples of {counts['records']:,} records{told}"


def validation_numbers(details: Mapping[str, Any]) -> Iterator[str]:
    """What a validation found, number by number: "loss 1.2345", "perplexity 3.44", …"""
    for name in ("reward", "loss"):
        if details.get(name) is not None:
            yield f"{name} {details[name]:.4f}"
    if details.get("perplexity") is not None:
        yield f"perplexity {details['perplexity']:.2f}"
    for name, value in details.get("metrics", {}).items():
        if isinstance(value, (int, float)) and name != REWARD:
            yield f"{name.replace('_', ' ')} {value:.4g}"
    forgetting = details.get("forgetting")
    if forgetting:
        yield f"forgetting {forgetting['score']:+.4f}"


def step_numbers(record: Mapping[str, Any]) -> Iterator[str]:
    """How good a step was, number by number: the loss, or what the answers of it were worth."""
    if REWARD not in record:
        yield f"loss {record['loss']:.4f}"
        if record.get("accuracy") is not None:
            yield f"accuracy {record['accuracy']:.1%}"
        return
    yield f"reward {record[REWARD]:.3f}"
    if record.get("kl_answer") is not None:
        yield f"KL {record['kl_answer']:.3g}"
    yield f"length {record['answer_tokens']:.3g}"
    for name, said in (("truncated_share", "cut off"), ("unrewarded_share", "without reward")):
        if record.get(name):
            yield f"{record[name]:.1%} {said}"
    if record.get("rollout_gap") is not None:
        yield f"gap {record['rollout_gap']:.1g}"


def _culprit(details: Mapping[str, Any]) -> str:
    return f"rank {details['rank']} on {details['host']}: " if "rank" in details else ""


def quantity(number: float) -> str:
    """`1234567` as `1.23M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """`3:07`, `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
