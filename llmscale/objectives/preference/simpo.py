"""SimPO (arXiv:2405.14734, equation 6), without a reference:

    loss = −log σ(β/|chosen| log π(chosen) − β/|rejected| log π(rejected) − γ)

|…| are the tokens of the answer.
"""

import torch.nn.functional as F

from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses, with_rewards


def simpo(pairs: PairLogProbabilities, beta: float, target_margin: float) -> PairLosses:
    """
    Args:
        pairs: [G] each, sums over the tokens; the reference is not looked at.
        beta: scale of the rewards.
        target_margin: γ, by how much the chosen answer's reward is to be greater.
    """
    mean = pairs.per_token
    chosen_G, rejected_G = beta * mean.policy_chosen_G, beta * mean.policy_rejected_G
    return with_rewards(-F.logsigmoid(chosen_G - rejected_G - target_margin), chosen_G, rejected_G)
