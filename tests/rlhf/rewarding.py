"""Rewards of made-up tasks."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def short_words(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """More for answers whose words are short."""
    return [1.0 / (1 + max((len(word) for word in text.split()), default=20)) for text in completions]


class Again:
    """Asks for more until the last turn, and rewards short answers."""

    def reset(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": "go"}]

    def step(self, completion: str) -> tuple[list[dict[str, str]], float, bool]:
        return [{"role": "user", "content": "on"}], 1.0 / (1 + len(completion)), False


def hangs_at_first(
    prompts: Sequence[str], completions: Sequence[str], marks: Sequence[str], **_: Any
) -> list[float]:
    """As `short_words`, but the first call never ends.

    Args:
        marks: file that tells that there was one.
    """
    mark = Path(marks[0])
    if not mark.exists():
        mark.touch()
        time.sleep(1000)
    return short_words(prompts, completions)
