"""What a checkpoint's description says of PEFT: method, options, and the base that it builds on. No torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from llmscale.checkpoint.base import Base
from llmscale.config.problems import Problem
from llmscale.config.tuning import NOT_WEIGHTS, OF_METHOD, PeftSection

PEFT = "peft"
"""Where a manifest's description has the method and its options."""
VOCABULARY = "vocabulary_size"
"""Where it has the rows of tokens that the model was trained with, which may be more than the base has."""


def tuning_options(peft: PeftSection) -> dict[str, JsonValue]:
    """The method, and what it reads."""
    return peft.model_dump(mode="json", include={"method", *OF_METHOD[peft.method]})


def tuning_problems(
    peft: PeftSection, base: Base | None, checkpoint: Mapping[str, JsonValue]
) -> Iterator[Problem]:
    """Where a run would go on with another method, other options or another base than it has begun with.

    Args:
        peft: of the run now.
        base: of the run now; None where it is not known yet, or there is none.
        checkpoint: the description of what it would go on from.
    """
    stored = checkpoint.get(PEFT)
    ours, theirs = tuning_options(peft), stored if isinstance(stored, dict) else {"method": "none"}
    way_out = "and what a run trains stays the same to its end: set it back, or start a new run.name"
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            message = f"is {theirs.get(key, 'not set')} in the run's checkpoint, {way_out}"
            yield Problem(f"peft.{key}", str(ours.get(key, "not set")), message)
    other = Base.in_description(checkpoint)
    if base and other and base.identity != other.identity:
        message = f"has not the weights of {other.path}, which the run's checkpoint was trained on, {way_out}"
        yield Problem("train.init_from", base.path, message)


def not_mergeable(place: Path, description: Mapping[str, JsonValue], key: str = "TARGET") -> Problem | None:
    """What stands against taking all weights from a checkpoint, as a problem of `key`."""
    peft = description.get(PEFT)
    method = str(peft["method"]) if isinstance(peft, dict) else "none"
    if method not in NOT_WEIGHTS:
        return None
    message = f"was trained with peft.method = {method}, which {NOT_WEIGHTS[method]}; name its base instead"
    return Problem(key, place, message)
