"""Megatron's linear layers, with whole gradients for their biases in all cases."""

from megatron.core.tensor_parallel.layers import ColumnParallelLinear as MegatronColumnParallelLinear
from megatron.core.tensor_parallel.layers import RowParallelLinear as MegatronRowParallelLinear
from torch import Tensor

from llmscale.parallel.partial import sum_gradient


class ColumnParallelLinear(MegatronColumnParallelLinear):
    """Megatron's gives the bias no gradient where the weight is frozen: there the bias is added here."""

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, None]:
        own = self.weight
        is_frozen = own is not None and not own.requires_grad
        self.skip_bias_add = self.bias is not None and self.bias.requires_grad and is_frozen
        output, bias = super().forward(input_, weight, runtime_gather_output)
        return output if bias is None else output + bias, None


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
