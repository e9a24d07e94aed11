"""The loss of reward models on answers that are right or wrong, as of the verifiers of arXiv:2110.14168:
binary cross-entropy of the score at the end of the answer

    loss = −log σ(score) of a right answer, −log σ(−score) of a wrong one

Shapes: D answers.
"""

import torch.nn.functional as F
from torch import Tensor


def outcome(score_D: Tensor, is_right_D: Tensor) -> Tensor:
    """Loss of each answer, [D].

    Args:
        is_right_D: bool.
    """
    return F.binary_cross_entropy_with_logits(score_D, is_right_D.to(score_D), reduction="none")
