"""Root-mean-square and layer normalisation over the last dimension; also of a sum, which is needed itself."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale_kernels.cpu import norm as cpu
from llmscale_kernels.dispatch import takes_triton


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`hidden / sqrt(mean(hidden²) + epsilon) * weight` (arXiv:1910.07467), in hidden's dtype.

    Computed in float32 at least. On a GPU without Triton torch's own fused operation is taken.

    Args:
        hidden: [..., H].
        weight: [H].
        epsilon: added to the mean square.
    """
    if takes_triton(hidden):
        from llmscale_kernels.gpu import norm as gpu  # noqa: PLC0415 -- only there is Triton

        return gpu.rms_norm(hidden, weight, epsilon)
    if hidden.is_cuda:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, epsilon)
    if cpu.fits(hidden, weight):
        return cpu.rms_norm(hidden, weight, epsilon)
    return _RMSNorm.apply(hidden, weight, epsilon)  # pyright: ignore[reportReturnType]


def rms_norm_reference(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    mean_square = hidden.pow(2).mean(-1, keepdim=True)
    return hidden * torch.rsqrt(mean_square + epsilon) * weight


def add_and_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`rms_norm(residual + hidden)`, and the sum itself, which is not read again for it.

    Args:
        hidden: [..., H], what a layer adds.
        residual: what it is added to. Of another shape or dtype, it is added by torch.
    """
    if _are_alike(hidden, residual) and takes_triton(hidden):
        from llmscale_kernels.gpu import norm as gpu  # noqa: PLC0415 -- only there is Triton

        return gpu.add_and_rms_norm(hidden, residual, weight, epsilon)
    if _are_alike(hidden, residual) and cpu.fits(hidden, weight):
        return cpu.add_and_rms_norm(hidden, residual, weight, epsilon)
    total = residual + hidden
    return rms_norm(total, weight, epsilon), total


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`(hidden - mean) / sqrt(variance + epsilon) * weight + bias` (arXiv:1607.06450); shapes as above."""
    if takes_triton(hidden):
        from llmscale_kernels.gpu import norm as gpu  # noqa: PLC0415 -- only there is Triton

        return gpu.layer_norm(hidden, weight, bias, epsilon)
    return F.layer_norm(hidden, (hidden.shape[-1],), weight, bias, epsilon)


def add_and_layer_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`layer_norm(residual + hidden)`, and the sum itself."""
    if _are_alike(hidden, residual) and takes_triton(hidden):
        from llmscale_kernels.gpu import norm as gpu  # noqa: PLC0415 -- only there is Triton

        return gpu.add_and_layer_norm(hidden, residual, weight, bias, epsilon)
    total = residual + hidden
    return layer_norm(total, weight, bias, epsilon), total


def _are_alike(hidden: Tensor, residual: Tensor) -> bool:
    """Kernels read one as they read the other."""
    return hidden.dtype == residual.dtype and hidden.shape == residual.shape


class _RMSNorm(torch.autograd.Function):
    """torch's `rms_norm` is a chain of operations on a CPU: this one makes fewer passes over memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = _widened(hidden)
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(hidden.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return (wide * scale).mul_(weight).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, scale = ctx.saved_tensors
        normalised = _widened(hidden) * scale
        gradient = _widened(gradients[0])
        weight_gradient = (gradient * normalised).flatten(0, -2).sum(0)
        inner = gradient * weight
        along = torch.linalg.vecdot(inner, normalised).div_(hidden.shape[-1]).unsqueeze_(-1)
        hidden_gradient = inner.sub_(normalised.mul_(along)).mul_(scale)
        return hidden_gradient.to(hidden.dtype), weight_gradient.to(weight.dtype), None


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
