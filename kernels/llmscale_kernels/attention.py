"""Causal attention of documents that lie one after the other in packed rows.

On CPUs by a kernel of our own where it is built, which takes all documents in one call; torch's else.

Shapes: S tokens of a row, B rows, N query heads, K key-value heads, D head size.
"""

import ctypes
import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale_kernels.cpu.library import LANES, Strides, library_for, run, type_and_threads

Lengths = tuple[tuple[int, ...], ...]
"""Of the documents of each row, which fill it."""


def fits(query_SBND: Tensor) -> bool:
    """Whether `attention` takes such queries."""
    return query_SBND.shape[-1] % LANES == 0 and library_for(query_SBND) is not None


def attention(
    query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, lengths: Lengths, window: int | None = None
) -> Tensor:
    """softmax(query · keyᵀ / √D) · value of what each token sees: itself and what is before it in its
    document, [S, B, N, D].

    In float32 inside (FlashAttention-2's blocks, arXiv:2307.08691). What comes out for a document does not
    depend on what else is in its row.

    Args:
        query_SBND: of those that `fits` says yes to; strides are free, but for the last dimension.
        lengths: of the documents of each row.
        window: how many tokens are seen, the own one included.
    """
    return _Attention.apply(query_SBND, key_SBKD, value_SBKD, lengths, window)  # pyright: ignore[reportReturnType]


def attention_reference(
    query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, lengths: Lengths, window: int | None = None
) -> Tensor:
    """The same, with one mask over whole rows."""
    numbers_BS = torch.stack(
        [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    ).to(query_SBND.device)
    seen_BSS = (numbers_BS[:, :, None] == numbers_BS[:, None]).tril()
    if window is not None:
        seen_BSS = seen_BSS.triu(1 - window)
    attended_BNSD = F.scaled_dot_product_attention(
        query_SBND.permute(1, 2, 0, 3),
        key_SBKD.permute(1, 2, 0, 3),
        value_SBKD.permute(1, 2, 0, 3),
        attn_mask=seen_BSS[:, None],
        enable_gqa=query_SBND.shape[2] != key_SBKD.shape[2],
    )
    return attended_BNSD.permute(2, 0, 1, 3)


_GIVEN = ("query", "key", "value", "output", "output_gradient")
_GRADIENTS = ("query_gradient", "key_gradient", "value_gradient")


class _Call(ctypes.Structure):
    """`AttentionCall` of cpu/attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "output", "log_sums")),
        *((name, ctypes.c_void_p) for name in ("output_gradient", *_GRADIENTS)),
        *((f"of_{name}", Strides) for name in (*_GIVEN, *_GRADIENTS)),
        ("documents", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("number_of_documents", "positions", "heads")),
        *((name, ctypes.c_int64) for name in ("key_value_heads", "head_size", "window")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    ]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, window: int | None
    ) -> Tensor:
        query, key, value = (_dense(tensor) for tensor in (query, key, value))
        output = torch.empty(query.shape, dtype=query.dtype)
        sequence, rows, heads, _ = query.shape
        log_sums_BNS = torch.empty(rows, heads, sequence)
        tensors = {"query": query, "key": key, "value": value, "output": output}
        _run("attention_forward", tensors, log_sums_BNS, lengths, window)
        ctx.save_for_backward(query, key, value, output, log_sums_BNS)
        ctx.lengths, ctx.window = lengths, window
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sums_BNS = ctx.saved_tensors
        tensors = {"query": query, "key": key, "value": value, "output": output}
        tensors["output_gradient"] = _dense(gradients[0])
        results = [torch.empty(tensor.shape, dtype=query.dtype) for tensor in (query, key, value)]
        tensors |= dict(zip(_GRADIENTS, results))
        _run("attention_backward", tensors, log_sums_BNS, ctx.lengths, ctx.window)
        return *results, None, None


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _run(
    name: str, tensors: dict[str, Tensor], log_sums_BNS: Tensor, lengths: Lengths, window: int | None
) -> None:
    query, key = tensors["query"], tensors["key"]
    is_bfloat16, threads = type_and_threads(query)
    documents = _table(lengths, len(query))
    call = _Call(
        log_sums=log_sums_BNS.data_ptr(),
        documents=documents.data_ptr(),
        number_of_documents=len(documents),
        positions=query.shape[0],
        heads=query.shape[2],
        key_value_heads=key.shape[2],
        head_size=query.shape[3],
        window=window or 0,
        scale=1 / math.sqrt(query.shape[3]),
        is_bfloat16=is_bfloat16,
        threads=threads,
        **{key: tensor.data_ptr() for key, tensor in tensors.items()},
        **{f"of_{key}": Strides(*tensor.stride()[:3]) for key, tensor in tensors.items()},
    )
    run(name, ctypes.byref(call))


@functools.lru_cache(maxsize=64)
def _table(lengths: Lengths, sequence: int) -> Tensor:
    """Row, first position and length of every document, the longest first: threads then end together.

    All layers ask for the same one.
    """
    documents: list[tuple[int, int, int]] = []
    for row, row_lengths in enumerate(lengths):
        if sum(row_lengths) != sequence:
            raise ValueError(f"documents of {row_lengths} tokens do not fill a row of {sequence}")
        start = 0
        for length in row_lengths:
            documents.append((row, start, length))
            start += length
    return torch.tensor(sorted(documents, key=lambda document: -document[2]), dtype=torch.int64)
