"""Figures of answers, for metrics."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

import numpy as np

from llmscale.rlhf.experience import Experience
from llmscale.rlhf.learning import best_places

Figures = dict[str, float]


def told_of(experiences: Sequence[Experience]) -> Figures:
    """Means over answers: of rewards (`reward_mean`, and `reward_NAME` of each part), over prompts of the
    best answer's (`reward_best`), of lengths, and the shares of those that were cut off and of those that
    nobody could reward."""
    rewards = [one.reward for one in experiences if one.reward is not None]
    found: Figures = {
        "reward_mean": float(np.mean(rewards)) if rewards else 0.0,
        "reward_std": float(np.std(rewards)) if rewards else 0.0,
        "answer_tokens": mean(one.answer_length for one in experiences),
        "truncated_share": mean(not one.finished for one in experiences),
        "unrewarded_share": mean(one.reward is None for one in experiences),
    }
    best = [experiences[place].reward or 0.0 for place in best_places(experiences)]
    if best and len(best) < len(rewards):
        found["reward_best"] = mean(best)
    parts: dict[str, list[float]] = defaultdict(list)
    for one in experiences:
        for name, value in one.rewards.items():
            parts[name].append(value)
    return found | {f"reward_{name}": mean(values) for name, values in sorted(parts.items())}
