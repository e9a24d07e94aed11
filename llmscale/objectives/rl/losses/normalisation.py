"""What a token's loss weighs, and how many terms a batch has: the mean of the global batch is the sum of
weight × loss by the sum of terms.

    token      1                            terms are tokens: every token counts the same (arXiv:2503.14476)
    sequence   1 / tokens of the answer     terms are answers: every answer does (arXiv:2402.03300)
    constant   1 / the longest answer       terms are answers: no answer counts less a token for being long
                                            (Dr. GRPO, arXiv:2503.20783, section 3.2)

Answers of which nothing is learned are no terms.

Shapes: B rows, S tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from llmscale.objectives.rl.losses.answers import Answers

Normalisation = Literal["token", "sequence", "constant"]


def term_count(answers: Answers, normalisation: Normalisation) -> float:
    return float(answers.learned_BS.sum()) if normalisation == "token" else answers.count


def token_weights(answers: Answers, normalisation: Normalisation, longest: int) -> Tensor:
    """[B, S], float64, 0 where nothing is learned.

    Args:
        longest: tokens that an answer may have (constant).
    """
    learned_BS = answers.learned_BS.double()
    if normalisation == "sequence":
        return learned_BS / answers.spread(answers.tokens_D).clamp(min=1)
    return learned_BS / longest if normalisation == "constant" else learned_BS


def weighted_sum(losses_BS: Tensor, weights_BS: Tensor) -> Tensor:
    """A scalar; what has no weight may be anything."""
    return torch.where(weights_BS > 0, losses_BS * weights_BS.to(losses_BS), 0.0).sum()
