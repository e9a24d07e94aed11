"""Row-parallel linear layer whose bias gets its whole gradient under sequence parallelism too."""

from megatron.core.tensor_parallel.layers import RowParallelLinear as MegatronRowParallelLinear
from torch import Tensor

from llmscale.parallel.partial import sum_gradient


class RowParallelLinear(MegatronRowParallelLinear):
    """Megatron's, which leaves the bias to its caller: there each tensor rank adds it to its own part of
    the sequence, so the gradient that comes back is a partial sum."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_)
        if bias is not None and self.sequence_parallel:
            bias = sum_gradient(bias, self.tp_group)  # pyright: ignore[reportArgumentType]
        return output, bias


def no_initialization(_: Tensor) -> None:
    """What Megatron's linear layers are given for an initialiser: weights come from `model.initialize`."""
