"""Answers to prompts, as tokens, and the groups of documents that the engine's data makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmscale.data.examples import Document, Example


@dataclass(frozen=True)
class Pair:
    """Tokens of a prompt and of two answers to it, which end with token 1."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float = 0.0


@dataclass(frozen=True)
class Judged:
    """Tokens of a prompt and of an answer to it, good or bad."""

    prompt: list[int]
    answer: list[int]
    is_good: bool


def group_of_pair(pair: Pair, is_reward: bool = False) -> Example:
    return group_of(pair.prompt, [pair.chosen, pair.rejected], is_reward, pair.margin)


def group_of(
    prompt: list[int],
    answers: Sequence[list[int]],
    is_reward: bool = False,
    margin: float = 0.0,
    target: float | None = None,
) -> Example:
    """A document an answer, their roles being 0, 1, … A reward is told where the last token is read: one that
    nobody reads stands after it."""
    tokens = [[*prompt, *answer, *([0] if is_reward else [])] for answer in answers]
    learned = [
        [place == len(one) - 1 if is_reward else place >= len(prompt) for place in range(len(one))]
        for one in tokens
    ]
    documents = tuple(Document(len(one), role, margin * role) for role, one in enumerate(tokens))
    return Example(
        np.concatenate([np.array(one, np.int32) for one in tokens]),
        np.concatenate([np.array(one, bool) for one in learned]),
        target,
        documents,
    )
