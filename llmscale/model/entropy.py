"""Cross-entropy of labels and entropy over one set of logits whose vocabulary is split over ranks, never
gathered: both losses of reinforcement learning in one pass over the largest tensor there is.

With z = logits / temperature, p = softmax(z) over the whole vocabulary and H = −Σ p log p:

    ∂(−log p_label) / ∂z = p − [label],      ∂H / ∂z = −p (log p + H)

A rank knows Z_r, the log of its own sum of exponentials, and H_r, the entropy of its columns alone. With
w_r = exp(Z_r − Z) the whole is H = Σ_r w_r (H_r − log w_r), so that two numbers a token are sent.

As in `llmscale_kernels.cross_entropy`, columns of padding take no part, the gradient takes the place of the
logits in memory, and the result is float32 at least.
"""

from typing import Any

import torch
import torch.distributed
from llmscale_kernels.dispatch import softmax_kernels
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

ROWS_AT_ONCE = 256
"""Tokens worked on at a time."""
LEAST_LOGARITHM = -1e4
"""Of a probability that is 0: a logit may be minus infinity, and p log p is 0 all the same."""


class _CrossEntropyAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: Tensor,
        labels_T: Tensor,
        temperature: float,
        first_column: int,
        columns: int,
        group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        log_sum_T, label_logit_T, entropy_T = _statistics(
            logits_TV, labels_T, temperature, first_column, columns
        )
        if group is not None and group.size() > 1:
            log_sum_T, entropy_T = _over_ranks(log_sum_T, entropy_T, group)
            torch.distributed.all_reduce(label_logit_T, group=group)
        ctx.save_for_backward(logits_TV, labels_T, log_sum_T, entropy_T)
        ctx.temperature, ctx.first_column, ctx.columns = temperature, first_column, columns
        ctx.set_materialize_grads(False)
        return log_sum_T - label_logit_T, entropy_T.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_TV, labels_T, log_sum_T, entropy_T = ctx.saved_tensors
        of_loss_T, of_entropy_T = gradients
        of_loss_T = torch.zeros_like(log_sum_T) if of_loss_T is None else of_loss_T
        _gradient_in_place(
            *(logits_TV, labels_T, ctx.temperature, ctx.first_column, ctx.columns),
            *(log_sum_T, of_loss_T, entropy_T, of_entropy_T),
        )
        return logits_TV, None, None, None, None, None


def _statistics(
    logits_TV: Tensor, labels_T: Tensor, temperature: float, first_column: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the sum of exponentials over this rank's columns, the label's logit, 0 where it is not here, and
    the entropy of these columns alone."""
    kernels = softmax_kernels(logits_TV)
    if kernels is not None:
        return kernels.statistics(logits_TV, labels_T, first_column, columns, temperature, with_entropy=True)
    compute = torch.float64 if logits_TV.dtype == torch.float64 else torch.float32
    log_sum_T, entropy_T, label_logit_T = torch.zeros(
        3, len(labels_T), dtype=compute, device=logits_TV.device
    )
    # Memory that is new in each turn costs more than what is computed in it.
    shape = (2, min(ROWS_AT_ONCE, len(labels_T)), columns)
    scratch_2RV = torch.empty(shape, dtype=compute, device=logits_TV.device)
    for start in range(0, len(labels_T) if columns else 0, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        labels = labels_T[rows]
        chunk, exponentials = scratch_2RV[:, : len(labels)]
        chunk.copy_(logits_TV[rows, :columns])
        if temperature != 1:
            chunk.div_(temperature)
        local, mine = _own(labels, first_column, columns)
        label_logit_T[rows] = torch.where(mine, chunk.gather(1, local[:, None])[:, 0], 0.0)
        # Of z less the largest one: H = log Σ exp − Σ exp · z / Σ exp.
        largest = chunk.amax(dim=-1)
        torch.exp(chunk.sub_(largest[:, None]), out=exponentials)
        total = exponentials.sum(-1)
        log_sum_T[rows] = largest + total.log()
        products = exponentials.mul_(chunk.clamp_(min=LEAST_LOGARITHM))
        entropy_T[rows] = total.log() - products.sum(-1) / total
    if not columns:
        log_sum_T.fill_(-torch.inf)
    return log_sum_T, label_logit_T, entropy_T


def _gradient_in_place(
    logits_TV: Tensor,
    labels_T: Tensor,
    temperature: float,
    first_column: int,
    columns: int,
    log_sum_T: Tensor,
    of_loss_T: Tensor,
    entropy_T: Tensor,
    of_entropy_T: Tensor | None,
) -> None:
    kernels = softmax_kernels(logits_TV)
    if kernels is not None:
        place = labels_T, first_column, columns
        kernels.gradient_in_place(
            logits_TV, *place, log_sum_T, of_loss_T, entropy_T, of_entropy_T, temperature
        )
        return
    logits_TV[:, columns:] = 0
    for start in range(0, len(labels_T) if columns else 0, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        target = logits_TV[rows, :columns]
        # In the logits' own memory where they are as wide as what is computed in.
        logarithms = target.to(log_sum_T.dtype)
        if temperature != 1:
            logarithms.div_(temperature)
        logarithms.sub_(log_sum_T[rows, None])
        gradient = logarithms.exp_() if of_entropy_T is None else logarithms.exp()
        loss = of_loss_T[rows, None]
        if of_entropy_T is None:
            gradient.mul_(loss)
        else:  # p · (∂loss − ∂entropy · (log p + H))
            entropy = of_entropy_T[rows, None]
            factor = logarithms.clamp_(min=LEAST_LOGARITHM).mul_(-entropy)
            gradient.mul_(factor.add_(loss - entropy * entropy_T[rows, None]))
        local, mine = _own(labels_T[rows], first_column, columns)
        gradient.scatter_add_(1, local[:, None], torch.where(mine[:, None], -loss, 0.0))
        if temperature != 1:
            gradient.div_(temperature)
        if gradient is not target:
            target.copy_(gradient)


def _own(labels_T: Tensor, first_column: int, columns: int) -> tuple[Tensor, Tensor]:
    """The column of each label here, and whether it is one of this rank's."""
    local_T = labels_T - first_column
    return local_T.clamp(0, columns - 1), (local_T >= 0) & (local_T < columns)


def _over_ranks(log_sum_T: Tensor, entropy_T: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Log-sum and entropy over the columns of all ranks."""
    mine_2T = torch.stack((log_sum_T, entropy_T))
    parts = [torch.empty_like(mine_2T) for _ in range(group.size())]
    torch.distributed.all_gather(parts, mine_2T, group=group)
    log_sum_RT, entropy_RT = torch.stack(parts, dim=1)
    whole_T = log_sum_RT.logsumexp(dim=0)
    logarithms_RT = log_sum_RT - whole_T
    of_ranks_RT = entropy_RT - logarithms_RT.clamp(min=LEAST_LOGARITHM)
    return whole_T, (logarithms_RT.exp() * of_ranks_RT).sum(0)


def cross_entropy_and_entropy(
    logits_TV: Tensor,
    labels_T: Tensor,
    temperature: float,
    first_column: int,
    columns: int,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-probability of each label, and entropy in nats of what could have come, [T] each; float32
    (float64 for float64 logits).

    Backward runs once for both, and after it the logits are gone.

    Args:
        logits_TV: this rank's columns of the logits, padding included.
        labels_T: int64, indices into the whole vocabulary.
        temperature: what the logits are divided by, above 0.
        first_column: index in the whole vocabulary of this rank's first column.
        columns: how many of this rank's columns are no padding.
        group: the ranks that share the vocabulary.
    """
    return _CrossEntropyAndEntropy.apply(  # pyright: ignore[reportReturnType]
        logits_TV, labels_T, temperature, first_column, columns, group
    )
