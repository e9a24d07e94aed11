"""The output layer and the cross-entropy of its logits in one, a few tokens at a time: the logits of a
microbatch, by far its largest tensor where vocabularies are large, are never there as a whole.

Backward makes the logits of a few tokens again, a third more arithmetic than with logits that are kept. The
result is that of `cross_entropy` of the whole logits, and the entropy with it where it is asked for. With
z = hidden · weightᵀ / temperature, p = softmax(z) over the whole vocabulary and H = −Σ p log p:

    ∂(−log p_label) / ∂z = p − [label],      ∂H / ∂z = −p (log p + H)

The vocabulary may be split over tensor ranks as in Megatron-LM (arXiv:1909.08053, section 3): a rank knows
Z_r, the log of its own sum of exponentials, and H_r, the entropy of its columns alone; with w_r =
exp(Z_r − Z) the whole is H = Σ_r w_r (H_r − log w_r).

Shapes: T tokens, R of them worked on at a time, H hidden size, V columns of this rank.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from llmscale_kernels.dispatch import softmax_kernels
from llmscale_kernels.matmul import input_gradient, product, weight_gradient

ELEMENTS_AT_ONCE = 1 << 24
"""Logits that are there at a time, in float32 64 MiB."""
LEAST_ROWS = 64
"""Tokens at a time at least: with fewer, the weight is read too often."""
LEAST_LOGARITHM = -1e4
"""Of a probability that is 0: a logit may be minus infinity, and p log p is 0 all the same."""


class Vocabulary(NamedTuple):
    """This rank's part of the vocabulary."""

    first_column: int
    """Index of its first column in the whole."""
    columns: int
    """That are no padding: it comes after them, counts as minus infinity and gets a zero gradient."""
    group: ProcessGroup | None = None
    """The ranks that share the vocabulary."""

    @property
    def is_split(self) -> bool:
        return self.group is not None and self.group.size() > 1

    def own(self, labels_R: Tensor) -> tuple[Tensor, Tensor]:
        """The column of each label here, and whether it is one of this rank's."""
        local_R = labels_R - self.first_column
        return local_R.clamp(0, max(self.columns - 1, 0)), (local_R >= 0) & (local_R < self.columns)


def linear_cross_entropy(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    vocabulary: Vocabulary,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Negative log-probability of each label, [T], and, where it is asked for, entropy in nats of what could
    have come, [T]; float32 (float64 for float64 hidden states).

    Args:
        hidden_TH: what the output layer is given, the same on all ranks of the group; each gets its part of a
            gradient that is a sum over them.
        weight_VH: of the output layer, this rank's rows, padding included.
        labels_T: int64, indices into the whole vocabulary.
        temperature: what the logits are divided by, above 0.
    """
    found: Any = _LinearCrossEntropy.apply(
        hidden_TH, weight_VH, labels_T, vocabulary, temperature, with_entropy
    )
    losses_T, entropies_T = found
    return losses_T, entropies_T if with_entropy else None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        labels_T: Tensor,
        vocabulary: Vocabulary,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        compute = torch.float64 if hidden_TH.dtype == torch.float64 else torch.float32
        log_sum_T, label_logit_T, entropy_T = torch.zeros(
            3, len(labels_T), dtype=compute, device=hidden_TH.device
        )
        if not vocabulary.columns:
            log_sum_T.fill_(-torch.inf)
        for rows in _parts(labels_T, vocabulary):
            log_sum_T[rows], label_logit_T[rows], entropy_T[rows] = _statistics(
                product(hidden_TH[rows], weight_VH[: vocabulary.columns]),
                *(labels_T[rows], vocabulary, temperature, with_entropy),
            )
        if vocabulary.is_split:
            log_sum_T, entropy_T = _over_ranks(log_sum_T, entropy_T, vocabulary)
            torch.distributed.all_reduce(label_logit_T, group=vocabulary.group)
        ctx.save_for_backward(hidden_TH, weight_VH, labels_T, log_sum_T, entropy_T)
        ctx.vocabulary, ctx.temperature = vocabulary, temperature
        ctx.set_materialize_grads(False)
        return log_sum_T - label_logit_T, entropy_T.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, labels_T, log_sum_T, entropy_T = ctx.saved_tensors
        vocabulary, compute = ctx.vocabulary, log_sum_T.dtype
        of_losses_T, of_entropies_T = gradients
        of_losses_T = torch.zeros_like(log_sum_T) if of_losses_T is None else of_losses_T
        of_hidden_TH = torch.zeros_like(hidden_TH) if ctx.needs_input_grad[0] else None
        # A sum over many parts, in full precision whatever the weight has.
        of_weight_VH = torch.zeros_like(weight_VH, dtype=compute) if ctx.needs_input_grad[1] else None
        for rows in _parts(labels_T, vocabulary):
            whole = slice(vocabulary.columns)
            gradient_RV = _gradient(
                product(hidden_TH[rows], weight_VH[whole]),
                *(labels_T[rows], vocabulary, ctx.temperature),
                *(log_sum_T[rows], of_losses_T[rows], entropy_T[rows]),
                None if of_entropies_T is None else of_entropies_T[rows],
            )
            if of_hidden_TH is not None:
                of_hidden_TH[rows] = input_gradient(gradient_RV, weight_VH[whole])
            if of_weight_VH is not None:
                weight_gradient(gradient_RV, hidden_TH[rows], onto_OI=of_weight_VH[whole])
        if of_weight_VH is not None:
            of_weight_VH = of_weight_VH.to(weight_VH.dtype)
        return of_hidden_TH, of_weight_VH, None, None, None, None


def _parts(labels_T: Tensor, vocabulary: Vocabulary) -> list[slice]:
    """Tokens that are worked on together; none where this rank has padding only."""
    if not vocabulary.columns:
        return []
    size = max(LEAST_ROWS, ELEMENTS_AT_ONCE // vocabulary.columns)
    return [slice(first, first + size) for first in range(0, len(labels_T), size)]


def _statistics(
    logits_RV: Tensor, labels_R: Tensor, vocabulary: Vocabulary, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the sum of exponentials, the label's logit, 0 where it is not here, and the entropy, 0 unless it
    is asked for, of this rank's columns; the logits are used up."""
    kernels = softmax_kernels(logits_RV)
    if kernels is not None:
        return kernels.statistics(
            logits_RV, labels_R, vocabulary.first_column, vocabulary.columns, temperature, with_entropy
        )
    logits_RV = _over_temperature(logits_RV, temperature)
    local_R, mine_R = vocabulary.own(labels_R)
    label_logit_R = torch.where(mine_R, logits_RV.gather(1, local_R[:, None])[:, 0], 0.0)
    largest_R = logits_RV.amax(dim=-1)
    shifted_RV = logits_RV.sub_(largest_R[:, None])
    exponentials_RV = shifted_RV.exp() if with_entropy else shifted_RV.exp_()
    total_R = exponentials_RV.sum(dim=-1)
    entropy_R = torch.zeros_like(total_R)
    if with_entropy:  # of z less the largest one: log Σ exp − Σ exp · z / Σ exp
        products_RV = exponentials_RV.mul_(shifted_RV.clamp_(min=LEAST_LOGARITHM))
        entropy_R = total_R.log() - products_RV.sum(dim=-1) / total_R
    return largest_R + total_R.log(), label_logit_R, entropy_R


def _gradient(
    logits_RV: Tensor,
    labels_R: Tensor,
    vocabulary: Vocabulary,
    temperature: float,
    log_sum_R: Tensor,
    of_losses_R: Tensor,
    entropy_R: Tensor,
    of_entropies_R: Tensor | None,
) -> Tensor:
    """By the logits, in their dtype; they are used up."""
    kernels = softmax_kernels(logits_RV)
    if kernels is not None:
        place = labels_R, vocabulary.first_column, vocabulary.columns
        kernels.gradient_in_place(
            logits_RV, *place, log_sum_R, of_losses_R, entropy_R, of_entropies_R, temperature
        )
        return logits_RV
    dtype = logits_RV.dtype
    logits_RV = _over_temperature(logits_RV, temperature)
    logarithms_RV = logits_RV.sub_(log_sum_R[:, None])
    of_loss_R1 = of_losses_R[:, None]
    if of_entropies_R is None:
        gradient_RV = logarithms_RV.exp_().mul_(of_loss_R1)
    else:  # p · (∂loss − ∂entropy · (log p + H))
        of_entropy_R1 = of_entropies_R[:, None]
        gradient_RV = logarithms_RV.exp()
        factor_RV = logarithms_RV.clamp_(min=LEAST_LOGARITHM).mul_(-of_entropy_R1)
        gradient_RV.mul_(factor_RV.add_(of_loss_R1 - of_entropy_R1 * entropy_R[:, None]))
    local_R, mine_R = vocabulary.own(labels_R)
    gradient_RV.scatter_add_(1, local_R[:, None], torch.where(mine_R[:, None], -of_loss_R1, 0.0))
    if temperature != 1:
        gradient_RV.div_(temperature)
    return gradient_RV.to(dtype)


def _over_temperature(logits_RV: Tensor, temperature: float) -> Tensor:
    """In float32 at least, and in the memory of the logits if they are."""
    wide_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    return wide_RV if temperature == 1 else wide_RV.div_(temperature)


def _over_ranks(log_sum_T: Tensor, entropy_T: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Log-sum and entropy over the columns of all ranks."""
    assert vocabulary.group is not None
    mine_2T = torch.stack((log_sum_T, entropy_T))
    parts = [torch.empty_like(mine_2T) for _ in range(vocabulary.group.size())]
    torch.distributed.all_gather(parts, mine_2T, group=vocabulary.group)
    log_sum_GT, entropy_GT = torch.stack(parts, dim=1)
    whole_T = log_sum_GT.logsumexp(dim=0)
    logarithms_GT = log_sum_GT - whole_T
    of_ranks_GT = entropy_GT - logarithms_GT.clamp(min=LEAST_LOGARITHM)
    return whole_T, (logarithms_GT.exp() * of_ranks_GT).sum(0)
