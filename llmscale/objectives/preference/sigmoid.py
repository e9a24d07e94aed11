"""DPO (arXiv:2305.18290, equation 7); with label smoothing cDPO (Mitchell 2023, "A note on DPO with noisy
preferences"):

    Δ = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected)
    loss = −(1 − ε) log σ(β Δ) − ε log σ(−β Δ)

It starts at ln 2, whatever ε is.
"""

import torch.nn.functional as F

from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses, with_rewards


def sigmoid(pairs: PairLogProbabilities, beta: float, label_smoothing: float) -> PairLosses:
    """
    Args:
        pairs: [G] each; their `per_token` gives the loss of normalised lengths.
        beta: how far the policy is held to the reference.
        label_smoothing: ε, how often the preference is thought to be the wrong way round; below 1/2.
    """
    chosen_G, rejected_G = beta * pairs.chosen_ratio_G, beta * pairs.rejected_ratio_G
    margin_G = chosen_G - rejected_G
    right_G, wrong_G = -F.logsigmoid(margin_G), -F.logsigmoid(-margin_G)
    return with_rewards((1 - label_smoothing) * right_G + label_smoothing * wrong_G, chosen_G, rejected_G)
