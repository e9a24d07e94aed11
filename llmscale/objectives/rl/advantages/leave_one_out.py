"""Rewards of answers against the mean of the others to the same prompt (RLOO, arXiv:2402.14740, equation 8):

    A_i = R_i − mean of R_j over j ≠ i

The baseline knows nothing of the answer itself, so that it leaves the gradient unbiased.

Shapes: N samples.
"""

from llmscale.objectives.rl.advantages.rewarded import Advantages, Rewarded, groups_of
from llmscale.objectives.rl.groups import Groups


def leave_one_out(rewarded: Rewarded) -> Advantages:
    """The same at every token of a sample; 0 for one that is alone in its group.

    Raises:
        ValueError: the samples have no groups.
    """
    groups = Groups(groups_of(rewarded), rewarded.counts_N)
    # R − (sum − R) / (n − 1) is n / (n − 1) times the difference from the mean.
    factor_N = groups.size_N / (groups.size_N - 1).clamp(min=1)
    return Advantages(rewarded.spread(factor_N * groups.differences(rewarded.totals_N)), None)
