"""A head that tells something of a text: classes, a number, a reward."""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor
from torch.distributed import ProcessGroup

from llmscale.parallel.partial import sum_gradient


class ScoreHead(torch.nn.Module):
    """A linear layer without bias from hidden states to `outputs` scores at every token, the whole of it on
    every tensor rank; transformers' `score`.

    Args:
        outputs: labels, or 1 for a number.
        sequence_parallel: its input is this tensor rank's part of the sequence.
    """

    def __init__(
        self,
        hidden_size: int,
        outputs: int,
        dtype: torch.dtype,
        tensor_group: ProcessGroup,
        sequence_parallel: bool,
    ) -> None:
        super().__init__()
        self.tensor_group = tensor_group
        self.sequence_parallel = sequence_parallel
        self.weight = torch.nn.Parameter(torch.zeros(outputs, hidden_size, dtype=dtype))

    def forward(self, hidden_SBH: Tensor) -> Tensor:
        """Scores, [S, B, outputs], the same on all tensor ranks."""
        if not self.sequence_parallel:
            return F.linear(hidden_SBH, self.weight)
        scores = F.linear(hidden_SBH, sum_gradient(self.weight, self.tensor_group))
        # Every tensor rank computes the same loss of them, so none adds to another's gradient.
        return gather_from_sequence_parallel_region(
            scores, tensor_parallel_output_grad=False, group=self.tensor_group
        )
