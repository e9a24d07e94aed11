"""What a reward is: answers in, numbers out, or why there is none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmscale.data.chat.conversation import Message
from llmscale.runtime.final import FinalFailure

Prompt = str | tuple[Message, ...]

ModelScores = Callable[[Sequence[Sequence[int]]], Sequence[float]]
"""Of whole texts as tokens, each at its last one: what the group of the reward model gives."""


@dataclass(frozen=True)
class Sample:
    """One answer to be judged."""

    prompt: Prompt
    completion: str
    """Text of the answer, without the token that ends it."""
    tokens: Sequence[int]
    """Of prompt and answer, as they were read and written."""
    prompt_tokens: int
    """How many of `tokens` are the prompt."""
    finished: bool
    """The model ended it by itself."""
    record: str
    """Where the prompt stands, for messages: `my/prompts.jsonl, line 3`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The record's other fields."""


@dataclass(frozen=True)
class Scored:
    """What an answer is worth."""

    value: float | None
    """None: nobody knows, and the answer must not be learned from."""
    error: str | None = None
    """Why nobody knows."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """By name, for metrics: the values that `value` was made of, before their weights."""


@dataclass(frozen=True)
class Means:
    """What rewards need beside their sections."""

    scores: ModelScores | None = None
    """Of the reward model; for a reward of kind `model`."""
    folder: Path | None = None
    """Where answers are kept that were paid for; None: nowhere."""


NO_MEANS = Means()


class RewardFailed(FinalFailure):
    """The run must stop: too many answers have no reward. The message names one, and what was wrong."""


class Reward(Protocol):
    """One way to tell what answers are worth."""

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """One for each, in order. Whatever goes wrong with one of them is its `error`."""
        ...

    def stop(self) -> None:
        """From another thread or a signal handler: what is under way ends soon, with errors."""
        ...

    def close(self) -> None:
        """Ends what it has started."""
        ...


def unknown(sample: Sample, why: str) -> Scored:
    return Scored(None, f"{sample.record}: {why}")
