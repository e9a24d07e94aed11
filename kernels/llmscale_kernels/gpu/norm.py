"""Root-mean-square and layer normalisation in one pass over memory each way; also of a sum of two tensors,
which is written on the way.

With n = (x − m) · s, where s = 1 / sqrt(mean((x − m)²) + epsilon), and m = mean(x) in layer normalisation
(arXiv:1607.06450) but 0 in root-mean-square normalisation (arXiv:1910.07467):

    y = n · weight + bias
    ∂x = s · (g − n · mean(g · n) − mean(g)),   g = ∂y · weight,   without the last term where m = 0
    ∂weight = Σ ∂y · n,   ∂bias = Σ ∂y,   over all rows

and where x is a sum, ∂x is both summands' gradient, with what comes in for x itself added.

A program has some rows, each as a whole. In backward it goes through its rows and keeps its own part of the
two sums, which torch adds up: the order of additions depends on sizes only, so a run that is repeated
computes the same.

Shapes: T rows, H features.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale_kernels.gpu.launch import launch, parts_of, power_of_2
from llmscale_kernels.gpu.widened import widened

ELEMENTS_AT_ONCE = 2048
"""Of a program, where features are fewer: heads are short and many."""
MOST_PARTS = 512
"""Of the sums over rows: programs of the backward pass, a few for each multiprocessor of today's GPUs."""


@triton.jit
def _forward(
    hidden,
    residual,
    weight,
    bias,
    out,
    total,
    mean,
    scale,
    rows,
    features,
    EPSILON: tl.constexpr,
    IS_ADDED: tl.constexpr,
    IS_CENTERED: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, FEATURES)
    inside = (row < rows)[:, None] & (feature < features)[None, :]
    place = row.to(tl.int64)[:, None] * features + feature[None, :]
    centered = widened(tl.load(hidden + place, mask=inside, other=0.0))
    if IS_ADDED:
        # Rounded as it is kept, so that the norm is that of what is kept.
        added = centered + widened(tl.load(residual + place, mask=inside, other=0.0))
        kept = added.to(total.dtype.element_ty)
        tl.store(total + place, kept, mask=inside)
        centered = widened(kept)
    if IS_CENTERED:
        mean_of_row = tl.sum(centered, axis=1) / features
        tl.store(mean + row, mean_of_row, mask=row < rows)
        centered = tl.where(inside, centered - mean_of_row[:, None], 0.0)
    scale_of_row = tl.rsqrt(tl.sum(centered * centered, axis=1) / features + EPSILON)
    tl.store(scale + row, scale_of_row, mask=row < rows)
    factor = widened(tl.load(weight + feature, mask=feature < features, other=0.0))
    result = centered * scale_of_row[:, None] * factor[None, :]
    if IS_CENTERED:
        result += widened(tl.load(bias + feature, mask=feature < features, other=0.0))[None, :]
    tl.store(out + place, result, mask=inside)


@triton.jit
def _backward(
    hidden,
    weight,
    mean,
    scale,
    gradient,
    of_total,
    of_hidden,
    of_weight,
    of_bias,
    rows,
    features,
    IS_ADDED: tl.constexpr,
    IS_CENTERED: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    feature = tl.arange(0, FEATURES)
    is_feature = feature < features
    factor = widened(tl.load(weight + feature, mask=is_feature, other=0.0))[None, :]
    sum_for_weight = tl.zeros((ROWS, FEATURES), dtype=scale.dtype.element_ty)
    sum_for_bias = tl.zeros((ROWS, FEATURES), dtype=scale.dtype.element_ty)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & is_feature[None, :]
        place = row.to(tl.int64)[:, None] * features + feature[None, :]
        normalised = widened(tl.load(hidden + place, mask=inside, other=0.0))
        scale_of_row = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
        if IS_CENTERED:
            normalised -= tl.load(mean + row, mask=row < rows, other=0.0)[:, None]
        normalised = tl.where(inside, normalised * scale_of_row, 0.0)
        outer = widened(tl.load(gradient + place, mask=inside, other=0.0))
        inner = outer * factor
        along = tl.sum(inner * normalised, axis=1) / features
        result = inner - normalised * along[:, None]
        if IS_CENTERED:
            result -= (tl.sum(inner, axis=1) / features)[:, None]
            sum_for_bias += outer
        result *= scale_of_row
        if IS_ADDED:
            result += widened(tl.load(of_total + place, mask=inside, other=0.0))
        tl.store(of_hidden + place, result, mask=inside)
        sum_for_weight += outer * normalised
    part = tl.program_id(0) * features + feature
    tl.store(of_weight + part, tl.sum(sum_for_weight, axis=0), mask=is_feature)
    if IS_CENTERED:
        tl.store(of_bias + part, tl.sum(sum_for_bias, axis=0), mask=is_feature)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        epsilon: float,
    ) -> Tensor | tuple[Tensor, Tensor]:
        hidden_TH = _as_rows(hidden)
        out_TH = torch.empty_like(hidden_TH)
        residual_TH = None if residual is None else _as_rows(residual)
        total_TH = None if residual is None else torch.empty_like(hidden_TH)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scale_T = torch.empty(len(hidden_TH), dtype=wide, device=hidden.device)
        mean_T = None if bias is None else torch.empty_like(scale_T)
        sizes = _sizes(hidden_TH)
        launch(
            *(_forward, (parts_of(len(hidden_TH), sizes["ROWS"]),)),
            *(hidden_TH, residual_TH, weight.contiguous(), None if bias is None else bias.contiguous()),
            *(out_TH, total_TH, mean_T, scale_T, *hidden_TH.shape),
            EPSILON=epsilon,
            IS_ADDED=residual is not None,
            IS_CENTERED=bias is not None,
            **sizes,
        )
        ctx.save_for_backward(hidden_TH if total_TH is None else total_TH, weight, bias, mean_T, scale_T)
        ctx.set_materialize_grads(False)
        out = out_TH.view(hidden.shape)
        return out if total_TH is None else (out, total_TH.view(hidden.shape))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, total_gradient: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]:
        if gradient is None:
            return total_gradient, total_gradient, None, None, None
        hidden_TH, weight, bias, mean_T, scale_T = ctx.saved_tensors
        of_hidden_TH = torch.empty_like(hidden_TH)
        of_total_TH = None if total_gradient is None else _as_rows(total_gradient)
        sizes = _sizes(hidden_TH)
        parts = min(MOST_PARTS, parts_of(len(hidden_TH), sizes["ROWS"]))
        of_weight_PH = torch.empty(parts, len(weight), dtype=scale_T.dtype, device=weight.device)
        of_bias_PH = None if bias is None else torch.empty_like(of_weight_PH)
        launch(
            *(_backward, (parts,)),
            *(hidden_TH, weight.contiguous(), mean_T, scale_T, _as_rows(gradient), of_total_TH),
            *(of_hidden_TH, of_weight_PH, of_bias_PH, *hidden_TH.shape),
            IS_ADDED=of_total_TH is not None,
            IS_CENTERED=bias is not None,
            **sizes,
        )
        of_hidden = of_hidden_TH.view(gradient.shape)
        return (
            of_hidden,
            of_hidden if ctx.needs_input_grad[1] else None,
            of_weight_PH.sum(0).to(weight.dtype),
            None if bias is None or of_bias_PH is None else of_bias_PH.sum(0).to(bias.dtype),
            None,
        )


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`hidden / sqrt(mean(hidden²) + epsilon) * weight`, in hidden's dtype.

    Args:
        hidden: [..., H], of any strides: what is not contiguous is copied.
        weight: [H].
        epsilon: added to the mean square.
    """
    return _Norm.apply(hidden, None, weight, None, epsilon)  # pyright: ignore[reportReturnType]


def add_and_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`rms_norm(residual + hidden)` and the sum."""
    return _Norm.apply(hidden, residual, weight, None, epsilon)  # pyright: ignore[reportReturnType]


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`(hidden - mean) / sqrt(variance + epsilon) * weight + bias`; shapes as above."""
    return _Norm.apply(hidden, None, weight, bias, epsilon)  # pyright: ignore[reportReturnType]


def add_and_layer_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`layer_norm(residual + hidden)` and the sum."""
    return _Norm.apply(hidden, residual, weight, bias, epsilon)  # pyright: ignore[reportReturnType]


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()


def _sizes(hidden_TH: Tensor) -> dict[str, int]:
    """Of what a program has at a time, and by how many threads: 16 elements each, in small rows fewer."""
    features = power_of_2(hidden_TH.shape[-1])
    rows = max(1, ELEMENTS_AT_ONCE // features)
    return {"ROWS": rows, "FEATURES": features, "num_warps": min(16, max(4, rows * features // 512))}
