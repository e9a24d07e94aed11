"""How much likelier the policy has become, as logarithms: of each token, or of the answer that it stands in.

Shapes: B rows, S tokens.
"""

from collections.abc import Callable

from torch import Tensor

from llmscale.objectives.rl.losses.answers import Answers


def of_token(log_ratio_BS: Tensor, answers: Answers) -> Tensor:
    return log_ratio_BS


def geometric(log_ratio_BS: Tensor, answers: Answers) -> Tensor:
    """The mean over the tokens of the answer: the ratio of whole answers to the power of 1 / length (GSPO,
    arXiv:2507.18071, equation 7)."""
    sums_D = answers.sums(log_ratio_BS.double())
    return answers.spread(sums_D / answers.tokens_D.clamp(min=1)).to(log_ratio_BS.dtype)


def product(log_ratio_BS: Tensor, answers: Answers) -> Tensor:
    """The sum over the tokens of the answer: the ratio of whole answers, which are one action each
    (arXiv:2402.14740, section 3.2)."""
    return answers.spread(answers.sums(log_ratio_BS.double())).to(log_ratio_BS.dtype)


RATIOS: dict[str, Callable[[Tensor, Answers], Tensor]] = {
    "token": of_token,
    "geometric": geometric,
    "product": product,
}
"""`rlhf.update.ratio`: each from log π − log π_old of tokens, 0 where nothing is learned."""
