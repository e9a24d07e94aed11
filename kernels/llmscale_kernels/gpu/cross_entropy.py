"""Softmax of logits and what losses need of it, in one pass over the logits each way.

With z = logits / temperature, p = softmax(z) over the whole vocabulary and H = −Σ p log p:

    ∂(−log p_label) / ∂z = p − [label],      ∂H / ∂z = −p (log p + H)

Forward goes through a row once (arXiv:1805.02867): it keeps the largest z so far, m, with the sums of
exp(z − m) and, for the entropy, of exp(z − m) · (z − m), and scales them whenever m grows. The columns may be
a part of the vocabulary only: combining the parts is the caller's.

Shapes: T tokens, V columns, padding included.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmscale_kernels.gpu.launch import launch, parts_of, power_of_2
from llmscale_kernels.gpu.widened import widened

COLUMNS = 4096
"""Of a program, at a time."""
THREADS = 256
"""Of a program."""
LEAST_LOGARITHM = tl.constexpr(-1e4)
"""Of a probability that is 0: a logit may be minus infinity, and p log p is 0 all the same."""
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
"""What the largest so far is at first: unlike minus infinity it can be subtracted from itself."""


@triton.jit
def _statistics(
    logits,
    labels,
    log_sum,
    label_logit,
    entropy,
    row_stride,
    column_stride,
    first_column,
    columns,
    TEMPERATURE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    wide = log_sum.dtype.element_ty
    largest = tl.full((), LOWEST, wide)
    total = tl.zeros((), wide)
    products = tl.zeros((), wide)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        place = logits + row * row_stride + column.to(tl.int64) * column_stride
        z = widened(tl.load(place, mask=column < columns, other=-float("inf"))) / TEMPERATURE
        before = largest
        largest = tl.maximum(before, tl.max(z))
        exponentials = tl.exp(z - largest)
        rescaled = tl.exp(before - largest)
        if entropy is not None:
            step = tl.maximum(before - largest, LEAST_LOGARITHM)
            products = rescaled * (products + total * step)
            products += tl.sum(exponentials * tl.maximum(z - largest, LEAST_LOGARITHM))
        total = rescaled * total + tl.sum(exponentials)
    tl.store(log_sum + row, largest + tl.log(total))
    local = tl.load(labels + row) - first_column
    mine = (local >= 0) & (local < columns)
    picked = tl.load(logits + row * row_stride + local * column_stride, mask=mine, other=0.0)
    tl.store(label_logit + row, widened(picked) / TEMPERATURE)
    if entropy is not None:
        some = tl.where(total > 0, total, 1.0)  # none where there are no columns
        tl.store(entropy + row, tl.log(some) - products / some)


@triton.jit
def _gradient(
    logits,
    labels,
    log_sum,
    of_loss,
    entropy,
    of_entropy,
    row_stride,
    column_stride,
    first_column,
    columns,
    with_padding,
    TEMPERATURE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = logits + row * row_stride + column.to(tl.int64) * column_stride
    z = widened(tl.load(place, mask=column < columns, other=-float("inf"))) / TEMPERATURE
    logarithm = z - tl.load(log_sum + row)
    loss = tl.load(of_loss + row)
    factor = loss
    if of_entropy is not None:
        weight = tl.load(of_entropy + row)
        factor -= weight * (tl.maximum(logarithm, LEAST_LOGARITHM) + tl.load(entropy + row))
    is_label = column == tl.load(labels + row) - first_column
    result = tl.exp(logarithm) * factor - tl.where(is_label, loss, 0.0)
    result = tl.where(column < columns, result / TEMPERATURE, 0.0)
    tl.store(place, result, mask=column < with_padding)


def statistics(
    logits_TV: Tensor,
    labels_T: Tensor,
    first_column: int,
    columns: int,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token, [T], float32 (float64 for float64 logits): the log of the sum of exponentials of these
    columns, minus infinity if there are none; the label's z, 0 if it is not among them; and, where it is
    asked for, the entropy of these columns alone, else zeros.

    Args:
        logits_TV: of any strides.
        labels_T: int64, indices into the whole vocabulary.
        first_column: index in the whole vocabulary of the first column.
        columns: how many are no padding, which comes after them.
        temperature: what the logits are divided by, above 0.
    """
    wide = torch.promote_types(logits_TV.dtype, torch.float32)
    log_sum_T, label_logit_T = torch.empty(2, len(labels_T), dtype=wide, device=logits_TV.device)
    entropy_T = torch.zeros_like(log_sum_T)
    launch(
        *(_statistics, (len(labels_T),)),
        *(logits_TV, labels_T.contiguous(), log_sum_T, label_logit_T, entropy_T if with_entropy else None),
        *(*logits_TV.stride(), first_column, columns),
        TEMPERATURE=temperature,
        COLUMNS=_at_once(columns),
        num_warps=THREADS // 32,
    )
    return log_sum_T, label_logit_T, entropy_T


def gradient_in_place(
    logits_TV: Tensor,
    labels_T: Tensor,
    first_column: int,
    columns: int,
    log_sum_T: Tensor,
    of_loss_T: Tensor,
    entropy_T: Tensor | None = None,
    of_entropy_T: Tensor | None = None,
    temperature: float = 1.0,
) -> None:
    """Puts the gradient of losses and entropies, both of the whole vocabulary, in the place of the logits;
    that of padding is 0.

    Args:
        log_sum_T: of the whole vocabulary, as `statistics` has it of some columns.
        of_loss_T: gradient of something by the negative log-probabilities of the labels.
        entropy_T: of the whole vocabulary; not needed without the next.
        of_entropy_T: gradient of that thing by the entropies.
    """
    per_token = (log_sum_T, of_loss_T, entropy_T, of_entropy_T)
    with_padding = logits_TV.shape[1]
    at_once = _at_once(with_padding)
    launch(
        *(_gradient, (len(labels_T), parts_of(with_padding, at_once))),
        *(logits_TV, labels_T.contiguous(), *(x if x is None else x.contiguous() for x in per_token)),
        *(*logits_TV.stride(), first_column, columns, with_padding),
        TEMPERATURE=temperature,
        COLUMNS=at_once,
        num_warps=THREADS // 32,
    )
    # Autograd knows nothing of it otherwise: a second backward pass has to be refused.
    torch.autograd.graph.increment_version(logits_TV)


def _at_once(columns: int) -> int:
    return min(COLUMNS, power_of_2(max(1, columns)))
