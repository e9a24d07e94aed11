"""The hinge of SLiC-HF (arXiv:2305.10425) on DPO's margin, as in RSO (arXiv:2309.06657):

    loss = max(0, 1 − β Δ)

It starts at 1.
"""

import torch

from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses, with_rewards


def hinge(pairs: PairLogProbabilities, beta: float) -> PairLosses:
    """
    Args:
        pairs: [G] each.
        beta: a margin Δ of 1 / β is enough.
    """
    chosen_G, rejected_G = beta * pairs.chosen_ratio_G, beta * pairs.rejected_ratio_G
    return with_rewards(torch.relu(1 - (chosen_G - rejected_G)), chosen_G, rejected_G)
