"""Kinds of rewards by their names in the config."""

from collections.abc import Callable
from importlib import import_module

from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.rlhf.rewards.reward import Means, Reward

REWARDS = {
    "model": "llmscale.rlhf.rewards.model:open_reward",
    "function": "llmscale.rlhf.rewards.function:open_reward",
    "judge": "llmscale.rlhf.rewards.judge:open_reward",
    "math": "llmscale.rlhf.rewards.mathematics:open_reward",
    "python": "llmscale.rlhf.rewards.python_code:open_reward",
}
"""Kind -> function of its section and of what there is beside it."""


def open_reward(term: RewardTerm, means: Means) -> Reward:
    module, _, name = REWARDS[term.kind].partition(":")
    function: Callable[[RewardTerm, Means], Reward] = getattr(import_module(module), name)
    return function(term, means)
