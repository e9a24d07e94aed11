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
    if not torch.is_grad_enabled():  # At a few rows autograd's call costs as much as the kernel.
        return _normalised(hidden, None, weight, epsilon)[0]
    return _CompiledRMSNorm.apply(hidden, None, weight, epsilon)  # pyright: ignore[reportReturnType]


def add_and_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """As `llmscale_kernels.norm.add_and_rms_norm`."""
    if not torch.is_grad_enabled():
        output, total, _ = _normalised(hidden, residual, weight, epsilon)
        return output, total
    return _CompiledRMSNorm.apply(hidden, residual, weight, epsilon)  # pyright: ignore[reportReturnType]


def _normalised(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm, what it is of, and the factors of its rows."""
    # A part of a larger tensor, as queries and keys are, is kept as such: the whole is there anyway.
    dense, weight = hidden.contiguous(), weight.contiguous()
    output, size = torch.empty_like(dense), hidden.shape[-1]
    scales = torch.empty(hidden.numel() // size)
    if residual is None:
        total, places = hidden, (None, None)
    else:
        residual, total = residual.contiguous(), torch.empty_like(dense)
        places = (residual.data_ptr(), total.data_ptr())
    pointers = (dense.data_ptr(), places[0], weight.data_ptr(), output.data_ptr(), places[1])
    last = (len(scales), size, epsilon, *type_and_threads(hidden))
    run("rms_norm_forward", *pointers, scales.data_ptr(), *last)
    return output, total, scales


class _CompiledRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        output, total, scales = _normalised(hidden, residual, weight, epsilon)
        ctx.save_for_backward(total, weight.contiguous(), scales)
        ctx.set_materialize_grads(False)
        return output if residual is None else (output, total)

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
        given = (hidden.data_ptr(), weight.data_ptr(), scales.data_ptr(), gradient.data_ptr())
        of_total = None if total_gradient is None else total_gradient.data_ptr()
        results = (hidden_gradient.data_ptr(), weight_gradients.data_ptr())
        sizes = (len(scales), size, parts, *type_and_threads(hidden))
        run("rms_norm_backward", *given, of_total, *results, *sizes)
        residual_gradient = hidden_gradient if ctx.needs_input_grad[1] else None
        return hidden_gradient, residual_gradient, weight_gradients.sum(0).to(weight.dtype), None
