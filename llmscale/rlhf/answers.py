"""Answers to prompts, as they are written and before anybody has judged them.

Shapes: T tokens of prompt and answer together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.data.chat.conversation import Message
from llmscale.data.prompt_records import Prompt
from llmscale.objectives.rl.signals import ROLLOUT
from llmscale.parallel.rng import derived_seed
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.rollout.engine import Request, Written


@dataclass(frozen=True)
class Rollout:
    """Which prompts are to be answered, and how."""

    prompts: Sequence[Prompt]
    first: int
    """Number of the first prompt in the whole run, of which draws depend."""
    options: RolloutSection
    seed: int
    """Of the run."""
    version: int
    """Steps of the run that the weights have behind them which write."""

    @property
    def places(self) -> list[tuple[int, int]]:
        """Of each answer its prompt, and which answer to it: answers to the same prompt follow each other."""
        return [
            (prompt, place) for prompt in range(len(self.prompts)) for place in range(self.options.answers)
        ]

    def draw(self, prompt: int, place: int, turn: int = 0) -> int:
        """Seed of what is written in one turn: of a place in the run, and of nothing that ran before."""
        return derived_seed(self.seed, "answer", self.first + prompt, place, turn)


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt, or a conversation that began with it."""

    experience: Experience
    said: tuple[Message, ...] | None = None
    """What stood before the last answer of a conversation; None: the prompt alone."""
    error: str | None = None
    """Why nobody knows what it is worth."""


Write = Callable[[Sequence[Request], RolloutSection], list[Written]]
"""Has answers written, one for each request."""


class Author(Protocol):
    """One way to come to answers."""

    def __call__(self, rollout: Rollout, write: Write) -> list[Answer]:
        """One for each of `rollout.places`."""
        ...


def single_answers(rollout: Rollout, write: Write) -> list[Answer]:
    """The prompt is all that is said, and the answer is the end."""
    requests = [
        Request(rollout.prompts[prompt].tokens, rollout.draw(prompt, place), rollout.options.max_new_tokens)
        for prompt, place in rollout.places
    ]
    written = write(requests, rollout.options)
    return [
        Answer(_experience(request, answer, *places, rollout.version))
        for request, answer, places in zip(requests, written, rollout.places, strict=True)
    ]


def _experience(request: Request, answer: Written, prompt: int, place: int, version: int) -> Experience:
    before = len(request.tokens)
    tokens = np.array([*request.tokens, *answer.tokens], np.int32)
    told = np.concatenate((np.zeros(before), answer.log_probabilities)).astype(np.float32)
    learned = np.arange(len(tokens)) >= before
    return Experience(tokens, learned, prompt, place, version, answer.finished, {ROLLOUT: told})
