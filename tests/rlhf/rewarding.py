"""Rewards of made-up tasks."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from llmscale.rlhf.rewards.constant import CONSTANTS


def short_words(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """More for answers whose words are short."""
    return [1.0 / (1 + max((len(word) for word in text.split()), default=20)) for text in completions]


class Again:
    """Asks for more until the last turn, and rewards short answers."""

    def reset(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": "go"}]

    def step(self, completion: str) -> tuple[list[dict[str, str]], float, bool]:
        return [{"role": "user", "content": "on"}], 1.0 / (1 + len(completion)), False


def hangs_at_some(
    prompts: Sequence[str], completions: Sequence[str], hangs: Sequence[bool], **_: Any
) -> list[float]:
    """As `short_words`, but never ends for a model's answers to prompts whose record says so."""
    if any(one and text not in CONSTANTS for one, text in zip(hangs, completions)):
        time.sleep(1000)
    return short_words(prompts, completions)
