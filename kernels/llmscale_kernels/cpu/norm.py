"""RMSNorm by cpu/norm.cpp, of a sum of two where there is a residual: one pass over memory each way."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale_kernels.cpu.library import LANES, library_for, run, type_and_threads

ROWS_OF_A_PART = 64
"""Of which a part of the weight's gradient is the sum: fixed, so that it does not depend on threads."""


def fits(hidden: Tensor, weight: Tensor) -> bool:
    """Whether `rms_norm` takes them."""
    is_whole = hidden.shape[-1] % LANES == 0 and hidden.dtype == weight.dtype
    return is_whole and library_for(hidden) is not None


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As `llmscale_kernels.norm.rms_norm`."""
    return _CompiledRMSNorm.apply(hidden, None, weight, epsilon)  # pyright: ignore[reportReturnType]


def add_and_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """As `llmscale_kernels.norm.add_and_rms_norm`."""
    return _CompiledRMSNorm.apply(hidden, residual, weight, epsilon)  # pyright: ignore[reportReturnType]


class _CompiledRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        # A part of a larger tensor, as queries and keys are, is kept as such: the whole is there anyway.
        dense, weight = hidden.contiguous(), weight.contiguous()
        output, size = torch.empty_like(dense), hidden.shape[-1]
        if residual is not None:
            residual = residual.contiguous()
        total = None if residual is None else torch.empty_like(dense)
        scales = torch.empty(hidden.numel() // size)
        pointers = (_pointer(tensor) for tensor in (dense, residual, weight, output, total, scales))
        run("rms_norm_forward", *pointers, len(scales), size, epsilon, *type_and_threads(hidden))
        ctx.save_for_backward(hidden if total is None else total, weight, scales)
        ctx.set_materialize_grads(False)
        return output if total is None else (output, total)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, total_gradient: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if gradient is None:
            return total_gradient, total_gradient, None, None
        hidden, weight, scales = ctx.saved_tensors
        hidden, gradient, size = hidden.contiguous(), gradient.contiguous(), hidden.shape[-1]
        if total_gradient is not None:
            total_gradient = total_gradient.contiguous()
        parts = -(-len(scales) // ROWS_OF_A_PART)
        hidden_gradient, weight_gradients = torch.empty_like(hidden), torch.zeros(parts, size)
        tensors = (hidden, weight, scales, gradient, total_gradient, hidden_gradient, weight_gradients)
        pointers = (_pointer(tensor) for tensor in tensors)
        run("rms_norm_backward", *pointers, len(scales), size, parts, *type_and_threads(hidden))
        residual_gradient = hidden_gradient if ctx.needs_input_grad[1] else None
        return hidden_gradient, residual_gradient, weight_gradients.sum(0).to(weight.dtype), None


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
