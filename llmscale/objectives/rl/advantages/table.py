"""Which estimator an algorithm has, and what it reads of the options (`rlhf.*`)."""

from collections.abc import Callable
from dataclasses import replace

from llmscale.config.rlhf import RlhfSection, UpdateSection
from llmscale.objectives.rl.advantages.gae import gae
from llmscale.objectives.rl.advantages.group_relative import group_relative
from llmscale.objectives.rl.advantages.leave_one_out import leave_one_out
from llmscale.objectives.rl.advantages.reinforce_plus_plus import reinforce_plus_plus
from llmscale.objectives.rl.advantages.rewarded import Advantages, Rewarded
from llmscale.objectives.rl.whiten import moments, whitened

ESTIMATORS: dict[str, Callable[[Rewarded, UpdateSection], Advantages]] = {
    "ppo": lambda rewarded, options: gae(rewarded, options.gamma, options.gae_lambda),
    "grpo": lambda rewarded, options: group_relative(rewarded, options.scale),
    "rloo": lambda rewarded, options: leave_one_out(rewarded),
    "reinforce_plus_plus": lambda rewarded, options: reinforce_plus_plus(
        rewarded, options.gamma, options.baseline == "group"
    ),
}


def estimate_advantages(rewarded: Rewarded, options: RlhfSection) -> Advantages:
    """By `options.algorithm`, of the whole global batch.

    Raises:
        KeyError: the algorithm has no advantages (raft, best_of_n).
        ValueError: the estimator needs values or groups, and there are none.
    """
    learned_NS = rewarded.learned_NS
    if options.update.whiten_rewards:
        sums = moments(rewarded.rewards_NS, learned_NS)
        # The mean stays: without it every token would be paid, or punished, for being there.
        rewards_NS = whitened(rewarded.rewards_NS, learned_NS, sums, shift_mean=False)
        rewarded = replace(rewarded, rewards_NS=rewards_NS)
    found = ESTIMATORS[options.algorithm](rewarded, options.update)
    if not options.whitens_advantages:
        return found
    sums = moments(found.advantages_NS, learned_NS)
    return found._replace(advantages_NS=whitened(found.advantages_NS, learned_NS, sums))
