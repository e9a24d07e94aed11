"""Gradients that are partial sums over the tensor ranks, finished where they arise.

A parameter that every tensor rank holds whole, but that each uses on a part of the activations (norms
and biases under sequence parallelism, per-head norms), gets only a part of its gradient on each rank.
Passing it through `sum_gradient` where it is used makes the gradient whole before the optimizer, ZeRO
or a gradient norm sees it.
"""

from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        torch.distributed.all_reduce(gradient, group=ctx.group)
        return gradient, None


def sum_gradient(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """`tensor` itself; its gradient is summed over `group`."""
    if group.size() == 1:
        return tensor
    return _SumGradient.apply(tensor, group)  # pyright: ignore[reportReturnType]
