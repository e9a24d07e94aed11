"""What tokens weigh when one is drawn, by cpu/sampling.cpp: one pass for the largest logit and one more."""

import ctypes

import torch
from torch import Tensor

from llmscale_kernels.cpu.library import LANES, library_for, run, type_and_threads


def fits(logits_BV: Tensor, block: int) -> bool:
    """Whether `token_weights` takes them."""
    return block % LANES == 0 and logits_BV.stride(-1) == 1 and library_for(logits_BV) is not None


def token_weights(logits_BV: Tensor, temperature: float, block: int) -> tuple[Tensor, Tensor]:
    """As `llmscale_kernels.sampling.token_weights`."""
    rows, vocabulary = logits_BV.shape
    blocks = -(-vocabulary // block)
    weights_BV = torch.empty(rows, blocks * block)
    sums_BG = torch.empty(rows, blocks, dtype=torch.float64)
    pointers = (tensor.data_ptr() for tensor in (logits_BV, weights_BV, sums_BG))
    sizes = (logits_BV.stride(0), rows, vocabulary, block, temperature)
    run("token_weights", ctypes.byref(_Call(*pointers, *sizes, *type_and_threads(logits_BV))))
    return weights_BV, sums_BG


class _Call(ctypes.Structure):
    """`TokenWeightsCall` of sampling.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "weights", "sums")),
        *((name, ctypes.c_int64) for name in ("logits_row", "rows", "vocabulary", "block")),
        ("temperature", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    ]
