"""Generalised advantage estimation (arXiv:1506.02438, equation 16):

    δ_t = r_t + γ V_{t+1} − V_t,      A_t = δ_t + γ λ A_{t+1}

The sample ends after its last learned token, with a value of 0. Tokens that the policy has not chosen (turns
of an environment) are no steps: t + 1 is the next token that it has.

Shapes: N samples, S tokens.
"""

import torch
from torch import Tensor

from llmscale.objectives.rl.advantages.rewarded import Advantages, Rewarded


def gae(rewarded: Rewarded, gamma: float, trace: float) -> Advantages:
    """Advantages, and returns A + V for the critic.

    Args:
        trace: λ.

    Raises:
        ValueError: there are no values.
    """
    values_NS = rewarded.values_NS
    if values_NS is None:
        raise ValueError("the samples have no values; generalised advantage estimation needs a critic")
    rewards_NS, learned_NS = rewarded.rewards_NS, rewarded.learned_NS
    next_value_N = next_advantage_N = rewards_NS.new_zeros(len(rewards_NS))
    columns: list[Tensor] = []
    for place in reversed(range(rewards_NS.shape[1])):
        is_step_N = learned_NS[:, place]
        value_N = values_NS[:, place].to(rewards_NS)
        delta_N = rewards_NS[:, place] + gamma * next_value_N - value_N
        next_advantage_N = torch.where(
            is_step_N, delta_N + gamma * trace * next_advantage_N, next_advantage_N
        )
        next_value_N = torch.where(is_step_N, value_N, next_value_N)
        columns.append(torch.where(is_step_N, next_advantage_N, 0.0))
    advantages_NS = torch.stack(columns[::-1], dim=1)
    returns_NS = torch.where(learned_NS, advantages_NS + values_NS.to(rewards_NS), 0.0)
    return Advantages(advantages_NS, returns_NS)
