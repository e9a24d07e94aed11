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

from llmscale_kernels.cpu.library import library_for, run, type_and_threads

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
        log_sum_T, label_logit_T = _sums(logits_TV, labels_T - first_column, columns)
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
        local_T = labels_T - ctx.first_column
        if _is_compiled_for(logits_TV):
            _compiled("cross_entropy_backward", logits_TV, local_T, log_sum_T, gradients[0], ctx.columns)
        else:
            _put_gradient(logits_TV, local_T, log_sum_T, gradients[0], ctx.columns)
        return logits_TV, None, None, None, None


def _sums(logits_TV: Tensor, local_T: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Logarithm of the sum of exponentials, and the label's logit (0 where another rank has it), [T] each."""
    compute = torch.float64 if logits_TV.dtype == torch.float64 else torch.float32
    log_sum_T = torch.empty(local_T.shape, dtype=compute, device=logits_TV.device)
    label_logit_T = torch.empty_like(log_sum_T)
    if _is_compiled_for(logits_TV):
        _compiled("cross_entropy_forward", logits_TV, local_T, log_sum_T, label_logit_T, columns)
        return log_sum_T, label_logit_T
    for start in range(0, len(local_T), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        chunk = logits_TV[rows, :columns].to(compute)
        log_sum_T[rows] = torch.logsumexp(chunk, dim=-1) if columns else -torch.inf
        local = local_T[rows]
        mine = (local >= 0) & (local < columns)
        picked = chunk.gather(1, local.clamp(0, max(columns - 1, 0))[:, None])[:, 0] if columns else 0.0
        label_logit_T[rows] = torch.where(mine, picked, 0.0)
    return log_sum_T, label_logit_T


def _put_gradient(
    logits_TV: Tensor, local_T: Tensor, log_sum_T: Tensor, gradient_T: Tensor, columns: int
) -> None:
    """The gradient of the logits, in their place."""
    in_place = logits_TV.dtype == log_sum_T.dtype
    logits_TV[:, columns:] = 0
    for start in range(0, len(local_T), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        target = logits_TV[rows, :columns]
        chunk = torch.sub(target, log_sum_T[rows, None], out=target if in_place else None).exp_()
        local = local_T[rows]
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


def _is_compiled_for(logits_TV: Tensor) -> bool:
    return logits_TV.stride(-1) == 1 and library_for(logits_TV) is not None


def _compiled(name: str, logits_TV: Tensor, local_T: Tensor, *rest: Any) -> None:
    """cpu/cross_entropy.cpp: `rest` is two tensors, and the columns that count."""
    *tensors_T, columns = rest
    tensors = (local_T.contiguous(), *(tensor.contiguous() for tensor in tensors_T))
    pointers = (tensor.data_ptr() for tensor in (logits_TV, *tensors))
    sizes = (len(local_T), logits_TV.stride(0), columns)
    run(name, *pointers, *sizes, *type_and_threads(logits_TV))


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
