"""IPO (arXiv:2310.12036, equation 17; β is its τ):

    loss = (Δ − 1 / (2β))²

Δ is DPO's. It starts at 1 / (4β²), and ends at a margin instead of growing for ever. The paper's Δ are sums
over the tokens; TRL's are means, which `per_token` gives.
"""

from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses, with_rewards


def ipo(pairs: PairLogProbabilities, beta: float) -> PairLosses:
    """
    Args:
        pairs: [G] each.
        beta: the margin that is aimed at is 1 / (2β).
    """
    chosen_G, rejected_G = pairs.chosen_ratio_G, pairs.rejected_ratio_G
    loss_G = (chosen_G - rejected_G - 1 / (2 * beta)).square()
    return with_rewards(loss_G, beta * chosen_G, beta * rejected_G)
