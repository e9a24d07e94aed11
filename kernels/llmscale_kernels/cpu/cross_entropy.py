"""Softmax of logits and what losses need of it, by cross_entropy.cpp; with the functions of
`llmscale_kernels.gpu.cross_entropy`.

Shapes: T tokens, V columns, padding included.
"""

import ctypes

import torch
from torch import Tensor

from llmscale_kernels.cpu.library import library_for, run, type_and_threads


def fits(logits_TV: Tensor) -> bool:
    """Whether the functions of this file take them."""
    return logits_TV.stride(-1) == 1 and library_for(logits_TV) is not None


def statistics(
    logits_TV: Tensor,
    labels_T: Tensor,
    first_column: int,
    columns: int,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `llmscale_kernels.gpu.cross_entropy.statistics`, in float32."""
    log_sum_T, label_logit_T, entropy_T = torch.zeros(3, len(labels_T))
    tensors = {"log_sums": log_sum_T, "label_logits": label_logit_T}
    if with_entropy:
        tensors["entropies"] = entropy_T
    local_T = labels_T - first_column
    _run("cross_entropy_forward", logits_TV, columns, temperature, {"labels": local_T, **tensors})
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
    """As `llmscale_kernels.gpu.cross_entropy.gradient_in_place`; all that is known of tokens in float32."""
    tensors = {"labels": labels_T - first_column, "log_sums": log_sum_T, "of_losses": of_loss_T}
    if entropy_T is not None and of_entropy_T is not None:
        tensors |= {"entropies": entropy_T, "of_entropies": of_entropy_T}
    given = {name: tensor.contiguous() for name, tensor in tensors.items()}
    _run("cross_entropy_backward", logits_TV, columns, temperature, given)
    # Autograd knows nothing of it otherwise: a second backward pass has to be refused.
    torch.autograd.graph.increment_version(logits_TV)


class _Call(ctypes.Structure):
    """`CrossEntropyCall` of cross_entropy.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "labels", "log_sums", "label_logits", "entropies")),
        *((name, ctypes.c_void_p) for name in ("of_losses", "of_entropies")),
        *((name, ctypes.c_int64) for name in ("rows", "stride", "width", "columns")),
        ("temperature", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    ]


def _run(name: str, logits_TV: Tensor, columns: int, temperature: float, tensors: dict[str, Tensor]) -> None:
    is_bfloat16, threads = type_and_threads(logits_TV)
    rows, width = logits_TV.shape
    call = _Call(
        **{key: tensor.data_ptr() for key, tensor in {"logits": logits_TV, **tensors}.items()},
        **{"rows": rows, "stride": logits_TV.stride(0), "width": width, "columns": columns},
        **{"temperature": temperature, "is_bfloat16": is_bfloat16, "threads": threads},
    )
    run(name, ctypes.byref(call))
