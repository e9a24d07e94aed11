"""Attention of packed documents by cpu/attention.cpp: all of them in one call."""

import ctypes
import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale_kernels.cpu.library import LANES, Strides, library_for, run, type_and_threads
from llmscale_kernels.documents import Document, Lengths, documents_of


def fits(query_SBND: Tensor) -> bool:
    """Whether `attention` takes such queries."""
    return query_SBND.shape[-1] % LANES == 0 and library_for(query_SBND) is not None


def attention(
    query_SBND: Tensor,
    key_SBKD: Tensor,
    value_SBKD: Tensor,
    lengths: Lengths,
    window: int | None,
    before: Lengths | None,
) -> Tensor:
    """As `llmscale_kernels.attention.attention`, in float32 inside (FlashAttention-2's blocks,
    arXiv:2307.08691)."""
    return _CompiledAttention.apply(query_SBND, key_SBKD, value_SBKD, lengths, window, before)  # pyright: ignore[reportReturnType]


_GIVEN = ("query", "key", "value", "output", "output_gradient")
_GRADIENTS = ("query_gradient", "key_gradient", "value_gradient")


class _Call(ctypes.Structure):
    """`AttentionCall` of cpu/attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "output", "log_sums")),
        *((name, ctypes.c_void_p) for name in ("output_gradient", *_GRADIENTS)),
        *((f"of_{name}", Strides) for name in (*_GIVEN, *_GRADIENTS)),
        *((name, ctypes.c_void_p) for name in ("documents", "families")),
        *((name, ctypes.c_int64) for name in ("number_of_documents", "number_of_families")),
        *((name, ctypes.c_int64) for name in ("positions", "heads")),
        *((name, ctypes.c_int64) for name in ("key_value_heads", "head_size", "window")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    ]


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: Lengths,
        window: int | None,
        before: Lengths | None,
    ) -> Tensor:
        query, key, value = (_dense(tensor) for tensor in (query, key, value))
        output = torch.empty(query.shape, dtype=query.dtype)
        sequence, rows, heads, _ = query.shape
        log_sums_BNS = torch.empty(rows, heads, sequence)
        tensors = {"query": query, "key": key, "value": value, "output": output}
        tables = _tables(lengths, before, sequence)
        _run("attention_forward", tensors, log_sums_BNS, tables, window)
        ctx.save_for_backward(query, key, value, output, log_sums_BNS)
        ctx.tables, ctx.window = tables, window
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sums_BNS = ctx.saved_tensors
        tensors = {"query": query, "key": key, "value": value, "output": output}
        tensors["output_gradient"] = _dense(gradients[0])
        results = [torch.empty(tensor.shape, dtype=query.dtype) for tensor in (query, key, value)]
        tensors |= dict(zip(_GRADIENTS, results))
        _run("attention_backward", tensors, log_sums_BNS, ctx.tables, ctx.window)
        return *results, None, None, None


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _run(
    name: str,
    tensors: dict[str, Tensor],
    log_sums_BNS: Tensor,
    tables: tuple[Tensor, Tensor],
    window: int | None,
) -> None:
    query, key = tensors["query"], tensors["key"]
    is_bfloat16, threads = type_and_threads(query, query[..., 0].numel() * len(query))
    documents, families = tables
    call = _Call(
        log_sums=log_sums_BNS.data_ptr(),
        documents=documents.data_ptr(),
        families=families.data_ptr(),
        number_of_documents=len(documents),
        number_of_families=len(families) - 1,
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
def _tables(lengths: Lengths, before: Lengths | None, sequence: int) -> tuple[Tensor, Tensor]:
    """Of every document its row, first position and length, and the last two of what it goes on from; and the
    number of the first document of each family, with that of all documents in the end.

    Families, a beginning and what goes on from it, come by length: threads then end together. All layers ask
    for the same tables.

    Raises:
        ValueError: as `documents_of`.
    """
    families: list[list[Document]] = []
    for document in documents_of(lengths, before, sequence):
        if document.before:
            families[-1].append(document)
        else:
            families.append([document])
    families.sort(key=lambda family: -sum(document.length for document in family))
    numbers = itertools.accumulate((len(family) for family in families), initial=0)
    documents = [document for family in families for document in family]
    return torch.tensor(documents, dtype=torch.int64), torch.tensor(list(numbers), dtype=torch.int64)
