"""The update of LoRA (arXiv:2106.09685), added to what a linear layer gave: output + scale · inner Bᵀ.

A layer that is several of a model's own in one has a B for each, next to each other. Their products are added
to a copy of the output where they belong; nothing of the output's size is made but that copy.

Shapes: X any leading sizes, O outputs, R rank of all Bs together.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def add_low_rank(
    output_XO: Tensor, inner_XR: Tensor, ups: Sequence[Tensor], first_outputs: Sequence[int], scale: float
) -> Tensor:
    """The layer's new output, [X, O].

    Args:
        inner_XR: A x of each B, one behind the other.
        ups: each B, [outputs, rank].
        first_outputs: of each B the output that it begins with; they do not overlap.
    """
    return _AddLowRank.apply(output_XO, inner_XR, scale, tuple(first_outputs), *ups)  # pyright: ignore[reportReturnType]


def add_low_rank_reference(
    output_XO: Tensor, inner_XR: Tensor, ups: Sequence[Tensor], first_outputs: Sequence[int], scale: float
) -> Tensor:
    """The same, by operations that are differentiated one by one."""
    inner = inner_XR.split([up.shape[1] for up in ups], dim=-1)
    parts, end = list[Tensor](), 0
    for first, up, of_up in zip(first_outputs, ups, inner):
        parts += [inner_XR.new_zeros((*inner_XR.shape[:-1], first - end)), of_up @ up.t()]
        end = first + len(up)
    parts.append(inner_XR.new_zeros((*inner_XR.shape[:-1], output_XO.shape[-1] - end)))
    return output_XO + scale * torch.cat(parts, dim=-1)


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output_XO: Tensor,
        inner_XR: Tensor,
        scale: float,
        first_outputs: tuple[int, ...],
        *ups: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(inner_XR, *ups)
        ctx.scale, ctx.first_outputs = scale, first_outputs
        result_XO = output_XO.clone(memory_format=torch.contiguous_format)
        for up, result, inner in _parts(first_outputs, ups, result_XO, inner_XR):
            result.addmm_(inner, up.t(), alpha=scale)
        return result_XO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inner_XR, *ups = ctx.saved_tensors
        gradient_XO = gradients[0]
        inner_gradient = torch.empty_like(inner_XR, memory_format=torch.contiguous_format)
        up_gradients = [torch.empty_like(up) for up in ups]
        parts = _parts(ctx.first_outputs, ups, gradient_XO, inner_XR)
        into = _parts(ctx.first_outputs, ups, gradient_XO, inner_gradient)
        for (up, gradient, inner), (_, _, of_inner), of_up in zip(parts, into, up_gradients, strict=True):
            of_inner.addmm_(gradient, up, beta=0, alpha=ctx.scale)
            of_up.addmm_(gradient.t(), inner, beta=0, alpha=ctx.scale)
        return gradient_XO, inner_gradient, None, None, *up_gradients


def _parts(
    first_outputs: Sequence[int], ups: Sequence[Tensor], of_outputs: Tensor, of_inner: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each B, and what of the two tensors belongs to it, as matrices."""
    wide, narrow, rank = of_outputs.flatten(0, -2), of_inner.flatten(0, -2), 0
    for first, up in zip(first_outputs, ups, strict=True):
        yield up, wide[:, first : first + len(up)], narrow[:, rank : rank + up.shape[1]]
        rank += up.shape[1]
