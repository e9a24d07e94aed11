"""Answers to the same prompt, wherever in the batch they stand.

Shapes: N samples.
"""

import torch
from torch import Tensor


class Groups:
    """Which samples belong together; groups may differ in size.

    Args:
        group_N: int64, equal numbers are one group.
        counts_N: bool, samples that take part; others change nothing.
    """

    def __init__(self, group_N: Tensor, counts_N: Tensor) -> None:
        self.counts_N = counts_N
        _, self._place_N = torch.unique(group_N, return_inverse=True)
        self.size_N = self.sums(torch.ones_like(group_N, dtype=torch.float64))
        """How many samples of the group take part."""

    def sums(self, values_N: Tensor) -> Tensor:
        """For each sample the sum over its group, float64."""
        counted_N = torch.where(self.counts_N, values_N.double(), 0.0)
        groups = int(self._place_N.max()) + 1 if len(self._place_N) else 0
        return counted_N.new_zeros(groups).index_add(0, self._place_N, counted_N)[self._place_N]

    def means(self, values_N: Tensor) -> Tensor:
        """For each sample the mean over its group."""
        return self.sums(values_N) / self.size_N.clamp(min=1)

    def differences(self, values_N: Tensor) -> Tensor:
        """Of each sample from the mean of its group; 0 of those that take no part."""
        return torch.where(self.counts_N, values_N.double() - self.means(values_N), 0.0)
