"""RMSNorm by cpu/norm.cpp: one pass over memory each way."""

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
    return _CompiledRMSNorm.apply(hidden, weight, epsilon)  # pyright: ignore[reportReturnType]


class _CompiledRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        # A part of a larger tensor, as queries and keys are, is kept as such: the whole is there anyway.
        dense, weight = hidden.contiguous(), weight.contiguous()
        output, size = torch.empty_like(dense), hidden.shape[-1]
        scales = torch.empty(hidden.numel() // size)
        pointers = (dense.data_ptr(), weight.data_ptr(), output.data_ptr(), scales.data_ptr())
        run("rms_norm_forward", *pointers, len(scales), size, epsilon, *type_and_threads(hidden))
        ctx.save_for_backward(hidden, weight, scales)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, scales = ctx.saved_tensors
        hidden, gradient, size = hidden.contiguous(), gradients[0].contiguous(), hidden.shape[-1]
        parts = -(-len(scales) // ROWS_OF_A_PART)
        hidden_gradient, weight_gradients = torch.empty_like(hidden), torch.zeros(parts, size)
        tensors = (hidden, weight, scales, gradient, hidden_gradient, weight_gradients)
        pointers = (tensor.data_ptr() for tensor in tensors)
        run("rms_norm_backward", *pointers, len(scales), size, parts, *type_and_threads(hidden))
        return hidden_gradient, weight_gradients.sum(0).to(weight.dtype), None
