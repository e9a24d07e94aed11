"""Robust DPO (rDPO, arXiv:2403.00409): unbiased where a share ε of the preferences is turned
round:

    loss = [−(1 − ε) log σ(β Δ) + ε log σ(−β Δ)] / (1 − 2ε)

Δ is DPO's. It starts at ln 2, and may be below 0.
"""

import torch.nn.functional as F

from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses, with_rewards


def robust(pairs: PairLogProbabilities, beta: float, label_smoothing: float) -> PairLosses:
    """
    Args:
        pairs: [G] each.
        beta: how far the policy is held to the reference.
        label_smoothing: ε, below 1/2.
    """
    chosen_G, rejected_G = beta * pairs.chosen_ratio_G, beta * pairs.rejected_ratio_G
    margin_G = chosen_G - rejected_G
    right_G, wrong_G = -F.logsigmoid(margin_G), -F.logsigmoid(-margin_G)
    loss_G = ((1 - label_smoothing) * right_G - label_smoothing * wrong_G) / (1 - 2 * label_smoothing)
    return with_rewards(loss_G, chosen_G, rejected_G)
