"""SwiGLU by cpu/swiglu.cpp: one pass over memory each way."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale_kernels.cpu.library import LANES, library_for, run, type_and_threads


def fits(gate_and_up: Tensor) -> bool:
    """Whether `swiglu` takes it."""
    return gate_and_up.shape[-1] % (2 * LANES) == 0 and library_for(gate_and_up) is not None


def swiglu(gate_and_up: Tensor) -> Tensor:
    """As `llmscale_kernels.swiglu.swiglu`."""
    if not torch.is_grad_enabled():  # At a few rows autograd's call costs as much as the kernel.
        return _gated(gate_and_up.contiguous())
    return _CompiledSwiGLU.apply(gate_and_up)  # pyright: ignore[reportReturnType]


def _gated(gate_and_up: Tensor) -> Tensor:
    features = gate_and_up.shape[-1] // 2
    output = gate_and_up.new_empty((*gate_and_up.shape[:-1], features))
    pointers, rows = (gate_and_up.data_ptr(), output.data_ptr()), output.numel() // features
    run("swiglu_forward", *pointers, rows, features, *type_and_threads(output))
    return output


class _CompiledSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate_and_up = gate_and_up.contiguous()
        ctx.save_for_backward(gate_and_up)
        return _gated(gate_and_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gradient, result = gradients[0].contiguous(), torch.empty_like(gate_and_up)
        pointers, features = (x.data_ptr() for x in (gate_and_up, gradient, result)), gradient.shape[-1]
        rows = gradient.numel() // features
        run("swiglu_backward", *pointers, rows, features, *type_and_threads(gradient))
        return result
