"""Rewards of made-up tasks."""

from collections.abc import Sequence
from typing import Any


def short_words(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """More for answers whose words are short."""
    return [1.0 / (1 + max((len(word) for word in text.split()), default=20)) for text in completions]
