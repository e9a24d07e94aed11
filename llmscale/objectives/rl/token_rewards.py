"""Rewards of answers as rewards of tokens: the score comes with the last token, what divergence costs with
each (arXiv:1909.08593, equation 2; arXiv:2203.02155, equation 2).

Shapes: N samples, S tokens.
"""

import torch
from torch import Tensor


def token_rewards(score_N: Tensor, learned_NS: Tensor, penalty_NS: Tensor | None = None) -> Tensor:
    """[N, S], 0 where nothing is learned.

    Args:
        score_N: of each answer; not looked at where a sample has no learned token.
        learned_NS: bool, tokens that the policy has chosen.
        penalty_NS: what is taken away at each token: coefficient × estimated divergence.

    Raises:
        ValueError: the score of a sample that is to be learned is not finite.
    """
    has_some_N = learned_NS.any(dim=1)
    unknown = (has_some_N & ~score_N.isfinite()).nonzero().flatten().tolist()
    if unknown:
        raise ValueError(f"the rewards of samples {unknown} are not finite; leave those samples out")
    last_N = learned_NS.shape[1] - 1 - learned_NS.flip(1).int().argmax(dim=1)
    rewards_NS = score_N.new_zeros(learned_NS.shape)
    if penalty_NS is not None:
        rewards_NS = torch.where(learned_NS, -penalty_NS.to(score_N), 0.0)
    rewards_NS[has_some_N, last_N[has_some_N]] += score_N[has_some_N]
    return rewards_NS
