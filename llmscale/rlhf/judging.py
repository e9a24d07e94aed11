"""What answers are worth: by the rewards of the run, and by the environment that they were given to."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from llmscale.config.rlhf_environment import NAME
from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.answers import Answer
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.rewards.reward import Sample, Scored
from llmscale.rlhf.rewards.weighted import Rewards

Decode = Callable[[Sequence[int]], str]
"""Tokens that a model wrote -> their text, without what ends it."""


def judged(
    answers: Sequence[Answer], prompts: Sequence[Prompt], rewards: Rewards, decode: Decode
) -> list[Experience]:
    """The experiences with their rewards; without one where nobody knows it.

    Of a conversation rewards judge the last answer, as an answer to all that was said before.

    Raises:
        RewardFailed: too many answers have none.
    """
    places = [place for place, answer in enumerate(answers) if answer.error is None]
    samples = [_sample(answers[place], prompts[answers[place].experience.prompt], decode) for place in places]
    found = dict(zip(places, rewards.score(samples), strict=True))
    return [
        _worth(answer.experience, found[place]) if place in found else answer.experience
        for place, answer in enumerate(answers)
    ]


def _sample(answer: Answer, prompt: Prompt, decode: Decode) -> Sample:
    one = answer.experience
    tokens, first = one.tokens_T.tolist(), one.last_answer
    return Sample(
        answer.said or prompt.said,
        decode(tokens[first:]),
        tokens,
        first,
        one.finished,
        prompt.record,
        prompt.fields,
    )


def _worth(one: Experience, found: Scored) -> Experience:
    parts = dict(found.parts)
    if not one.turn_rewards:
        return replace(one, reward=found.value, rewards=parts)
    brought = float(np.sum([*one.turn_rewards.values()]))
    value = None if found.value is None else found.value + brought
    return replace(one, reward=value, rewards={**parts, NAME: brought})


def text_of(one: Experience, decode: Decode) -> str:
    """All that was said after the prompt, for people: in a conversation the turns of both."""
    written = np.flatnonzero(one.learned_T)
    return decode(one.tokens_T[written[0] :].tolist()) if len(written) else ""
