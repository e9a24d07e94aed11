"""SwiGLU (arXiv:2002.05202): SiLU of one half of the features times the other half."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale_kernels.cpu import swiglu as cpu
from llmscale_kernels.dispatch import takes_triton


def swiglu(gate_and_up: Tensor) -> Tensor:
    """[..., 2F] → [..., F]: `silu(first half) * second half`. Keeps nothing but its input for backward."""
    if takes_triton(gate_and_up):
        from llmscale_kernels.gpu import swiglu as gpu  # noqa: PLC0415 -- only there is Triton

        return gpu.swiglu(gate_and_up)
    if cpu.fits(gate_and_up):
        return cpu.swiglu(gate_and_up)
    return _SwiGLU.apply(gate_and_up)  # pyright: ignore[reportReturnType]


def swiglu_reference(gate_and_up: Tensor) -> Tensor:
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


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
