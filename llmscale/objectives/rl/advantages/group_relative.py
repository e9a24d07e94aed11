"""Rewards of answers against those of the others to the same prompt (GRPO, arXiv:2402.03300, section 4.1.2):

    A_i = (R_i − mean R) / (std R + ε)

`scale` none leaves the deviation out, which weighs prompts by how sure their outcome is (Dr. GRPO,
arXiv:2503.20783, equation 3); batch takes it over all samples.

Shapes: N samples.
"""

from typing import Literal

import torch

from llmscale.objectives.rl.advantages.rewarded import Advantages, Rewarded, groups_of
from llmscale.objectives.rl.groups import Groups

EPSILON = 1e-4
"""Added to the standard deviation: where all rewards are equal nothing is learned."""


def group_relative(rewarded: Rewarded, scale: Literal["group", "batch", "none"]) -> Advantages:
    """The same at every token of a sample; 0 for one that is alone in its group. Standard deviations are
    those of a sample (number − 1).

    Raises:
        ValueError: the samples have no groups.
    """
    counts_N, totals_N = rewarded.counts_N, rewarded.totals_N.double()
    groups = Groups(groups_of(rewarded), counts_N)
    difference_N = groups.differences(totals_N)
    if scale == "none":
        return Advantages(rewarded.spread(difference_N), None)
    if scale == "group":
        deviation_N = (groups.sums(difference_N.square()) / (groups.size_N - 1).clamp(min=1)).sqrt()
    else:
        counted = totals_N[counts_N]
        deviation_N = counted.std() if len(counted) > 1 else torch.zeros((), dtype=torch.float64)
    return Advantages(rewarded.spread(difference_N / (deviation_N + EPSILON)), None)
