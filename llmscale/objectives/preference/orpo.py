"""ORPO (arXiv:2403.07691, equations 4 to 7; β is its λ), without a reference:

    log P(y) = log π(y) / |y|        odds(y) = P(y) / (1 − P(y))
    loss = −log P(chosen) − β log σ(log odds(chosen) − log odds(rejected))

The first term is that of fine-tuning on the chosen answers, the mean over the tokens of each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses, with_rewards


def orpo(pairs: PairLogProbabilities, beta: float) -> PairLosses:
    """
    Args:
        pairs: [G] each, sums over the tokens; the reference is not looked at.
        beta: weight of the odds ratio.
    """
    mean = pairs.per_token
    chosen_G, rejected_G = mean.policy_chosen_G, mean.policy_rejected_G
    loss_G = -chosen_G - beta * F.logsigmoid(_log_odds(chosen_G) - _log_odds(rejected_G))
    return with_rewards(loss_G, beta * chosen_G, beta * rejected_G)


def _log_odds(log_probability_G: Tensor) -> Tensor:
    """log P / (1 − P). A probability of 1 in this precision has no odds: the nearest below stands for it."""
    below_one_G = log_probability_G.clamp(max=-torch.finfo(log_probability_G.dtype).eps)
    return below_one_G - torch.log(-torch.expm1(below_one_G))
