"""The loss of reward models on preferences (Bradley and Terry 1952, as in arXiv:2203.02155, equation 1; its
margin as in arXiv:2307.09288, equation 2):

    d = score(chosen) − score(rejected) − margin
    loss = −(1 − ε) log σ(d) − ε log σ(−d)

Shapes: G pairs.
"""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen_G: Tensor, rejected_G: Tensor, margin_G: Tensor | float, label_smoothing: float
) -> Tensor:
    """Loss of each pair, [G].

    Args:
        chosen_G: scores.
        rejected_G: scores.
        margin_G: by how much the chosen answer's score is to be greater; 0: by anything.
        label_smoothing: ε, how often the preference is thought to be the wrong way round.
    """
    difference_G = chosen_G - rejected_G - margin_G
    right_G, wrong_G = -F.logsigmoid(difference_G), -F.logsigmoid(-difference_G)
    return (1 - label_smoothing) * right_G + label_smoothing * wrong_G
