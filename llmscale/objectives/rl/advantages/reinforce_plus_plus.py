"""Discounted rewards to go, whitened over the tokens of the whole batch (REINFORCE++, arXiv:2501.03262):

    G_t = r_t + γ G_{t+1},      A_t = (G_t − mean G) / std G

Its variant with a baseline takes the mean reward of the prompt's answers away first.

Shapes: N samples, S tokens.
"""

import torch

from llmscale.objectives.rl.advantages.gae import gae
from llmscale.objectives.rl.advantages.rewarded import Advantages, Rewarded, groups_of
from llmscale.objectives.rl.groups import Groups
from llmscale.objectives.rl.token_rewards import token_rewards
from llmscale.objectives.rl.whiten import moments, whitened


def reinforce_plus_plus(rewarded: Rewarded, gamma: float, has_baseline: bool) -> Advantages:
    """
    Raises:
        ValueError: there is to be a baseline, and the samples have no groups.
    """
    rewards_NS, learned_NS = rewarded.rewards_NS, rewarded.learned_NS
    if has_baseline:
        mean_N = Groups(groups_of(rewarded), rewarded.counts_N).means(rewarded.totals_N)
        rewards_NS = rewards_NS - token_rewards(mean_N.to(rewards_NS), learned_NS)
    # Rewards to go are advantages over a critic that expects nothing, with λ = 1.
    nothing = torch.zeros_like(rewards_NS)
    to_go_NS = gae(Rewarded(rewards_NS, learned_NS, values_NS=nothing), gamma, 1.0).advantages_NS
    return Advantages(whitened(to_go_NS, learned_NS, moments(to_go_NS, learned_NS)), None)
