"""Cross-entropy of rows of logits by cpu/cross_entropy.cpp.

Labels count from this rank's first column here; those of other ranks lie outside its columns.
"""

import torch
from torch import Tensor

from llmscale_kernels.cpu.library import library_for, run, type_and_threads


def fits(logits_TV: Tensor) -> bool:
    """Whether the functions of this file take them."""
    return logits_TV.stride(-1) == 1 and library_for(logits_TV) is not None


def statistics(logits_TV: Tensor, labels_T: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials of the first `columns`, and the label's logit or 0; [T], float32."""
    log_sum_T, label_logit_T = torch.empty(len(labels_T)), torch.empty(len(labels_T))
    _run("cross_entropy_forward", logits_TV, labels_T, log_sum_T, label_logit_T, columns)
    return log_sum_T, label_logit_T


def gradient_in_place(
    logits_TV: Tensor, labels_T: Tensor, columns: int, log_sum_T: Tensor, gradient_T: Tensor
) -> None:
    """The gradient of the logits takes their place; that of columns beyond is 0.

    Args:
        log_sum_T: over all ranks, float32.
        gradient_T: of the cross-entropy of each token, float32.
    """
    _run("cross_entropy_backward", logits_TV, labels_T, log_sum_T, gradient_T.contiguous(), columns)


def _run(
    name: str, logits_TV: Tensor, labels_T: Tensor, first_T: Tensor, second_T: Tensor, columns: int
) -> None:
    labels_T = labels_T.contiguous()
    pointers = (tensor.data_ptr() for tensor in (logits_TV, labels_T, first_T, second_T))
    sizes = (len(labels_T), logits_TV.stride(0), logits_TV.shape[1], columns)
    run(name, *pointers, *sizes, *type_and_threads(logits_TV))
