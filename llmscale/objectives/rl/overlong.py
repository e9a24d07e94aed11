"""Answers that are longer than they should be (DAPO, arXiv:2503.14476, section 3.4).

Shapes: N samples, S tokens.
"""

import torch
from torch import Tensor

from llmscale.config.rlhf import OverlongSection


def overlong_reward(tokens_N: Tensor, longest: int, options: OverlongSection) -> Tensor:
    """What is added to the reward of each answer for its length, [N], float64; equation 13, times the
    penalty: 0 up to the buffer, then falling in a straight line to −penalty at `longest`, and no further.

    Args:
        tokens_N: of each answer.
        longest: that an answer may have.
    """
    if not options.buffer:
        return torch.zeros(len(tokens_N), dtype=torch.float64, device=tokens_N.device)
    beyond_N = tokens_N.double() - (longest - options.buffer)
    return -options.penalty * (beyond_N / options.buffer).clamp(0, 1)


def without_truncated(learned_NS: Tensor, is_finished_N: Tensor, options: OverlongSection) -> Tensor:
    """Which tokens are learned, bool [N, S], without those of answers that were cut off, where the options
    say so. To be asked after the advantages: rewards of such answers are compared with all the same."""
    return learned_NS if options.learn_truncated else learned_NS & is_finished_N[:, None]
