"""SwiGLU (arXiv:2002.05202): SiLU of one half of the features times the other half."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale_kernels.cpu.library import LANES, library_for, run, type_and_threads


def swiglu(gate_and_up: Tensor) -> Tensor:
    """[..., 2F] → [..., F]: `silu(first half) * second half`. Keeps nothing but its input for backward."""
    if gate_and_up.shape[-1] % (2 * LANES) == 0 and library_for(gate_and_up) is not None:
        return _CompiledSwiGLU.apply(gate_and_up)  # pyright: ignore[reportReturnType]
    return _SwiGLU.apply(gate_and_up)  # pyright: ignore[reportReturnType]


def swiglu_reference(gate_and_up: Tensor) -> Tensor:
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _CompiledSwiGLU(torch.autograd.Function):
    """cpu/swiglu.cpp: one pass over memory each way."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate_and_up = gate_and_up.contiguous()
        ctx.save_for_backward(gate_and_up)
        features = gate_and_up.shape[-1] // 2
        output = gate_and_up.new_empty((*gate_and_up.shape[:-1], features))
        pointers, rows = (gate_and_up.data_ptr(), output.data_ptr()), output.numel() // features
        run("swiglu_forward", *pointers, rows, features, *type_and_threads(output))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gradient, result = gradients[0].contiguous(), torch.empty_like(gate_and_up)
        pointers, features = (x.data_ptr() for x in (gate_and_up, gradient, result)), gradient.shape[-1]
        rows = gradient.numel() // features
        run("swiglu_backward", *pointers, rows, features, *type_and_threads(gradient))
        return result


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_up)
        gate_gradient, up_gradient = result.chunk(2, dim=-1)
        torch.mul(gradients[0], F.silu(gate), out=up_gradient)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=gate_gradient)
        return result
