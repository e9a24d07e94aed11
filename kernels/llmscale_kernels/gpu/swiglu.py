"""SwiGLU (arXiv:2002.05202) in one pass over memory each way.

With σ the logistic function and s = gate · σ(gate):

    y = s · up,   ∂up = ∂y · s,   ∂gate = ∂y · up · (σ(gate) + s · (1 − σ(gate)))

A program has a piece of one row.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale_kernels.gpu.launch import launch, parts_of
from llmscale_kernels.gpu.widened import widened

FEATURES = 1024
"""Of a program."""


@triton.jit
def _forward(gate_and_up, out, features, FEATURES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inside = feature < features
    place = row * 2 * features + feature
    gate = widened(tl.load(gate_and_up + place, mask=inside, other=0.0))
    up = widened(tl.load(gate_and_up + place + features, mask=inside, other=0.0))
    tl.store(out + row * features + feature, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _backward(gate_and_up, gradient, result, features, FEATURES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inside = feature < features
    place = row * 2 * features + feature
    gate = widened(tl.load(gate_and_up + place, mask=inside, other=0.0))
    up = widened(tl.load(gate_and_up + place + features, mask=inside, other=0.0))
    outer = widened(tl.load(gradient + row * features + feature, mask=inside, other=0.0))
    logistic = tl.sigmoid(gate)
    silu = gate * logistic
    tl.store(result + place, outer * up * (logistic + silu * (1 - logistic)), mask=inside)
    tl.store(result + place + features, outer * silu, mask=inside)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate_and_up = gate_and_up.contiguous()
        ctx.save_for_backward(gate_and_up)
        features = gate_and_up.shape[-1] // 2
        out = gate_and_up.new_empty((*gate_and_up.shape[:-1], features))
        launch(_forward, _programs(out), gate_and_up, out, features, FEATURES=FEATURES)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        result = torch.empty_like(gate_and_up)
        features = gradient.shape[-1]
        launch(_backward, _programs(gradient), gate_and_up, gradient, result, features, FEATURES=FEATURES)
        return result


def swiglu(gate_and_up: Tensor) -> Tensor:
    """[..., 2F] → [..., F]: `silu(first half) * second half`. Keeps nothing but its input for backward; an
    input that is not contiguous is copied."""
    return _SwiGLU.apply(gate_and_up)  # pyright: ignore[reportReturnType]


def _programs(out: Tensor) -> tuple[int, int]:
    """Rows, and pieces of a row."""
    features = max(1, out.shape[-1])
    return out.numel() // features, parts_of(features, FEATURES)
