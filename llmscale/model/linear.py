"""Megatron's linear layers: with whole gradients for their biases in all cases, and on CPUs with the products
of `llmscale_kernels.matmul`.

Shapes: S sequence, B batch, I features in, O features out, of this rank.
"""

from typing import Any

import torch
import torch.distributed
from llmscale_kernels import matmul
from megatron.core.tensor_parallel.layers import ColumnParallelLinear as MegatronColumnParallelLinear
from megatron.core.tensor_parallel.layers import RowParallelLinear as MegatronRowParallelLinear
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from llmscale.parallel.partial import sum_gradient


class _Product(torch.autograd.Function):
    """As Megatron's: the gradient of the input is summed over the tensor ranks while that of the weight is
    computed."""

    @staticmethod
    def forward(ctx: Any, input_SBI: Tensor, weight_OI: Tensor, summing: ProcessGroup | None) -> Tensor:
        # Where the weight is frozen nobody needs the input.
        ctx.save_for_backward(input_SBI if ctx.needs_input_grad[1] else None, weight_OI)
        ctx.summing = summing
        return matmul.product(input_SBI, weight_OI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input_SBI, weight_OI = ctx.saved_tensors
        gradient_SBO = gradients[0].contiguous()
        of_input, of_weight, sums = None, None, None
        if ctx.needs_input_grad[0]:
            of_input = matmul.input_gradient(gradient_SBO, weight_OI)
            if ctx.summing is not None:
                sums = torch.distributed.all_reduce(of_input, group=ctx.summing, async_op=True)
        if ctx.needs_input_grad[1]:
            of_weight = matmul.weight_gradient(gradient_SBO, input_SBI)
        if sums is not None:
            sums.wait()
        return of_input, of_weight, None


class _Products:
    """What both linear layers have in place of Megatron's product."""

    packed: Tensor | None = None
    """The weight, while texts are written: see `model.packed`."""

    def _forward_impl(
        self,
        input: Tensor,  # the names are Megatron's
        weight: Tensor,
        bias: Tensor | None,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: ProcessGroup,
        **rest: Any,
    ) -> Tensor:
        if self.packed is not None and not torch.is_grad_enabled():
            output = matmul.packed_product(input, self.packed)
        elif matmul.differs_from_torch(input) and not sequence_parallel:
            output = _Product.apply(input, weight, tp_group if allreduce_dgrad else None)
        else:
            options = {"allreduce_dgrad": allreduce_dgrad, "sequence_parallel": sequence_parallel}
            whole: Any = super()
            return whole._forward_impl(
                input=input, weight=weight, bias=bias, tp_group=tp_group, **options, **rest
            )
        assert isinstance(output, Tensor)
        return output if bias is None else output + bias


class ColumnParallelLinear(_Products, MegatronColumnParallelLinear):
    """Megatron's gives the bias no gradient where the weight is frozen: there the bias is added here."""

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, None]:
        own = self.weight
        is_frozen = own is not None and not own.requires_grad
        self.skip_bias_add = self.bias is not None and self.bias.requires_grad and is_frozen
        output, bias = super().forward(input_, weight, runtime_gather_output)
        return output if bias is None else output + bias, None


class RowParallelLinear(_Products, MegatronRowParallelLinear):
    """Megatron's, which leaves the bias to its caller: there each tensor rank adds it to its own part of
    the sequence, so the gradient that comes back is a partial sum."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_)
        if bias is not None and self.sequence_parallel:
            bias = sum_gradient(bias, self.tp_group)  # pyright: ignore[reportArgumentType]
        return output, bias


def no_initialization(_: Tensor) -> None:
    """What Megatron's linear layers are given for an initialiser: weights come from `model.initialize`."""
