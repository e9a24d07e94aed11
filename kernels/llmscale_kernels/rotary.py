"""Rotary position embedding (arXiv:2104.09864) in the layout of Hugging Face's Llama.

The first half of a head's dimensions is turned against the second half. Queries, keys and values come out
of one matrix product; they are taken apart and turned in one step, so that the backward pass writes one
gradient instead of joining three.

Shapes: S sequence, B batch, N query heads, K key-value heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale_kernels.cpu import rotary as cpu
from llmscale_kernels.dispatch import takes_triton


def split_and_rotate(
    mixed_SBXD: Tensor, heads: int, kv_heads: int, cosine_SBD: Tensor, sine_SBD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries [S, B, N, D], turned keys [S, B, K, D], and values [S, B, K, D].

    Args:
        mixed_SBXD: queries, then keys, then values: X = N + 2 K.
        cosine_SBD: [S, B or 1, D] in the dtype of `mixed_SBXD`; its two halves are equal.
        sine_SBD: likewise.
    """
    return _SplitAndRotate.apply(mixed_SBXD, heads, kv_heads, cosine_SBD, sine_SBD)  # pyright: ignore[reportReturnType]


def rotate(heads_SBND: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor) -> Tensor:
    """Turn every head by its position's angles."""
    if not torch.is_grad_enabled():
        return _turn(heads_SBND, cosine_SBD, sine_SBD, torch.empty_like(heads_SBND), sign=1)
    return _Rotate.apply(heads_SBND, cosine_SBD, sine_SBD)  # pyright: ignore[reportReturnType]


def rotate_reference(heads_SBND: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor) -> Tensor:
    """`rotate`, as the paper's formula has it."""
    half = heads_SBND.shape[-1] // 2
    swapped = torch.cat((-heads_SBND[..., half:], heads_SBND[..., :half]), dim=-1)
    return heads_SBND * cosine_SBD.unsqueeze(2) + swapped * sine_SBD.unsqueeze(2)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads_SBND: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor) -> Tensor:
        ctx.save_for_backward(cosine_SBD, sine_SBD)
        return _turn(heads_SBND, cosine_SBD, sine_SBD, torch.empty_like(heads_SBND), sign=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine_SBD, sine_SBD = ctx.saved_tensors
        gradient = gradients[0]
        out = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
        return _turn(gradient, cosine_SBD, sine_SBD, out, sign=-1), None, None


class _SplitAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mixed_SBXD: Tensor, heads: int, kv_heads: int, cosine_SBD: Tensor, sine_SBD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosine_SBD, sine_SBD)
        ctx.heads, ctx.kv_heads = heads, kv_heads
        sequence, batch, total, size = mixed_SBXD.shape
        # Head by head in memory: attention reads each head's sequence as one block.
        out_BXSD = torch.empty(
            (batch, total, sequence, size), dtype=mixed_SBXD.dtype, device=mixed_SBXD.device
        )
        out = out_BXSD.permute(2, 0, 1, 3)
        turned = heads + kv_heads
        _turn(mixed_SBXD[:, :, :turned], cosine_SBD, sine_SBD, out[:, :, :turned], sign=1)
        out[:, :, turned:] = mixed_SBXD[:, :, turned:]
        query, key, value = out.split([heads, kv_heads, kv_heads], dim=2)
        return query, key, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        cosine_SBD, sine_SBD = ctx.saved_tensors
        query, key, value = gradients
        heads, turned = ctx.heads, ctx.heads + ctx.kv_heads
        shape = (*query.shape[:2], turned + ctx.kv_heads, query.shape[3])
        mixed = torch.empty(shape, dtype=query.dtype, device=query.device)
        _turn(query, cosine_SBD, sine_SBD, mixed[:, :, :heads], sign=-1)
        _turn(key, cosine_SBD, sine_SBD, mixed[:, :, heads:turned], sign=-1)
        mixed[:, :, turned:] = value
        return mixed, None, None, None, None


def _turn(heads: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor, out: Tensor, sign: int) -> Tensor:
    """Turn by the angles (`sign` 1) or back (-1), into `out`."""
    if takes_triton(heads):
        from llmscale_kernels.gpu import rotary as gpu  # noqa: PLC0415 -- only there is Triton

        return gpu.turn(heads, cosine_SBD, sine_SBD, out, sign)
    if cpu.fits(heads, cosine_SBD, sine_SBD):
        return cpu.turn(heads, cosine_SBD, sine_SBD, out, sign)
    half = heads.shape[-1] // 2
    cosine, sine = cosine_SBD[..., None, :half], sine_SBD[..., None, :half]
    first, second = heads[..., :half], heads[..., half:]
    torch.mul(first, cosine, out=out[..., :half]).addcmul_(second, sine, value=-sign)
    torch.mul(second, cosine, out=out[..., half:]).addcmul_(first, sine, value=sign)
    return out
