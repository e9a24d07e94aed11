"""Cross-entropy over logits whose vocabulary is split over ranks, never gathered.

Columns of padding (beyond the true vocabulary) take no part: they count as minus infinity and get a
zero gradient, so that padding changes nothing. The gradient takes the place of the logits in memory:
backward runs once, and after it the logits are gone. Follows the vocabulary-parallel scheme of Megatron-LM
(arXiv:1909.08053, section 3), in float32 at least, and in float64 for float64 logits.
"""

from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from llmscale_kernels.dispatch import softmax_kernels

ROWS_AT_ONCE = 256
"""Tokens worked on at a time: their float32 copy stays in the cache."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: Tensor,
        labels_T: Tensor,
        first_column: int,
        columns: int,
        group: ProcessGroup | None,
    ) -> Tensor:
        log_sum_T, label_logit_T = _statistics(logits_TV, labels_T, first_column, columns)
        if group is not None and group.size() > 1:
            log_sum_T = _sum_of_logarithms(log_sum_T, group)
            torch.distributed.all_reduce(label_logit_T, group=group)
        ctx.save_for_backward(logits_TV, labels_T, log_sum_T)
        ctx.first_column, ctx.columns = first_column, columns
        return log_sum_T - label_logit_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_TV, labels_T, log_sum_T = ctx.saved_tensors
        _gradient_in_place(logits_TV, labels_T, ctx.first_column, ctx.columns, log_sum_T, gradients[0])
        return logits_TV, None, None, None, None


def _statistics(
    logits_TV: Tensor, labels_T: Tensor, first_column: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials over this rank's columns, and the label's logit or 0."""
    kernels = softmax_kernels(logits_TV)
    if kernels is not None:
        log_sum_T, label_logit_T, _ = kernels.statistics(logits_TV, labels_T, first_column, columns)
        return log_sum_T, label_logit_T
    compute = torch.float64 if logits_TV.dtype == torch.float64 else torch.float32
    log_sum_T = torch.empty(labels_T.shape, dtype=compute, device=logits_TV.device)
    label_logit_T = torch.empty_like(log_sum_T)
    for start in range(0, len(labels_T), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        chunk = logits_TV[rows, :columns].to(compute)
        log_sum_T[rows] = torch.logsumexp(chunk, dim=-1) if columns else -torch.inf
        local = labels_T[rows] - first_column
        mine = (local >= 0) & (local < columns)
        picked = chunk.gather(1, local.clamp(0, max(columns - 1, 0))[:, None])[:, 0] if columns else 0.0
        label_logit_T[rows] = torch.where(mine, picked, 0.0)
    return log_sum_T, label_logit_T


def _gradient_in_place(
    logits_TV: Tensor,
    labels_T: Tensor,
    first_column: int,
    columns: int,
    log_sum_T: Tensor,
    gradient_T: Tensor,
) -> None:
    kernels = softmax_kernels(logits_TV)
    if kernels is not None:
        kernels.gradient_in_place(logits_TV, labels_T, first_column, columns, log_sum_T, gradient_T)
        return
    in_place = logits_TV.dtype == log_sum_T.dtype
    logits_TV[:, columns:] = 0
    for start in range(0, len(labels_T), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        target = logits_TV[rows, :columns]
        chunk = torch.sub(target, log_sum_T[rows, None], out=target if in_place else None).exp_()
        local = labels_T[rows] - first_column
        mine = (local >= 0) & (local < columns)
        if columns:
            chunk.scatter_add_(
                1,
                local.clamp(0, columns - 1)[:, None],
                torch.where(mine, -1.0, 0.0)[:, None].to(chunk.dtype),
            )
        chunk.mul_(gradient_T[rows, None])
        if not in_place:
            target.copy_(chunk)


def _sum_of_logarithms(log_sum_T: Tensor, group: ProcessGroup) -> Tensor:
    """log of the sum over `group` of exp(log_sum)."""
    largest_T = log_sum_T.clone()
    torch.distributed.all_reduce(largest_T, op=torch.distributed.ReduceOp.MAX, group=group)
    total_T = torch.exp(log_sum_T - largest_T)
    torch.distributed.all_reduce(total_T, group=group)
    return largest_T + total_T.log()


def cross_entropy(
    logits_TV: Tensor, labels_T: Tensor, first_column: int, columns: int, group: ProcessGroup | None = None
) -> Tensor:
    """Negative log-probability of each label, [T], in float32 (float64 for float64 logits).

    Args:
        logits_TV: this rank's columns of the logits, padding included.
        labels_T: int64, indices into the whole vocabulary.
        first_column: index in the whole vocabulary of this rank's first column.
        columns: how many of this rank's columns are no padding.
        group: the ranks that share the vocabulary.
    """
    return _CrossEntropy.apply(logits_TV, labels_T, first_column, columns, group)  # pyright: ignore[reportReturnType]
