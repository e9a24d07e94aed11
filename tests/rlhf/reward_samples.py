"""Samples for tests of rewards."""

from typing import Any

from llmscale.rlhf.rewards.reward import Sample


def sample(completion: str, prompt: str = "q", finished: bool = True, line: int = 1, **fields: Any) -> Sample:
    return Sample(prompt, completion, (7, 8, 9), 1, finished, f"prompts.jsonl, line {line}", fields)


def samples(*completions: str) -> list[Sample]:
    """Each in a line of its own, from 1."""
    return [sample(completion, line=line) for line, completion in enumerate(completions, start=1)]
