"""Whether a reward can be had without reading the prompt: what it gives to one answer to everything.

A policy finds that out sooner or later. Better to know before it does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmscale.rlhf.rewards.reward import RewardFailed, Sample, Scored

CONSTANTS = (
    *(
        "",
        " ",
        "\n",
        ".",
        "0",
        "1",
        "2",
        "10",
        "#### 0",
        "#### 1",
        "\\boxed{0}",
        "Yes.",
        "No.",
        "I do not know.",
    ),
    *("The answer is 1.", "pass", "...", "x = 1", "print(1)", "return None", "def f(x):\n    return x + 1\n"),
    *("Certainly! Here is the answer.", "the the the the the the the the"),
)
"""Answers to everything."""

Score = Callable[[Sequence[Sample]], list[Scored]]
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class ConstantAnswer:
    completion: str
    mean: float
    """Of the rewards that it gets."""


def constant_answers(
    score: Score,
    prompts: Sequence[Sample],
    encode: Encode | None = None,
    constants: Sequence[str] = CONSTANTS,
) -> list[ConstantAnswer]:
    """The best first. Of an answer without any reward nothing is said.

    Args:
        score: `Rewards.score`.
        prompts: of which the answers do not matter.
        encode: an answer to its tokens, for a reward of kind `model`; left out: it has none.
    """
    found: list[ConstantAnswer] = []
    for constant in constants:
        tokens = () if encode is None else encode(constant)
        samples = [
            replace(
                one, completion=constant, tokens=(*one.tokens[: one.prompt_tokens], *tokens), finished=True
            )
            for one in prompts
        ]
        try:
            values = [one.value for one in score(samples) if one.value is not None]
        except RewardFailed:
            continue  # the run tells, should a real answer have the same fate
        if values:
            found.append(ConstantAnswer(constant, sum(values) / len(values)))
    return sorted(found, key=lambda one: -one.mean)


def constant_answer_warnings(found: Sequence[ConstantAnswer], limit: float) -> list[str]:
    """One for each answer that gets more than `limit`, in the mean over the prompts."""
    return [
        f"this reward can be had by a constant answer: {one.completion!r} to every prompt gets {one.mean:.3g}"
        for one in found
        if one.mean > limit
    ]
