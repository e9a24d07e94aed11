"""Attention of one new token of each row of text to what a cache holds of the row.

Shapes: B rows, N query heads, K key-value heads, T places of a row, D head size.
"""

import ctypes
import math

import torch
from torch import Tensor

from llmscale_kernels.cpu.library import LANES, library_for, run, type_and_threads


def fits(query_BND: Tensor, keys_BKTD: Tensor) -> bool:
    """Whether `decode` takes them."""
    is_dense = keys_BKTD.stride()[2:] == (keys_BKTD.shape[3], 1)
    return is_dense and query_BND.shape[-1] % LANES == 0 and library_for(query_BND) is not None


def decode(
    query_BND: Tensor,
    keys_BKTD: Tensor,
    values_BKTD: Tensor,
    places_B: Tensor,
    prefix: int = 0,
    window: int | None = None,
) -> Tensor:
    """softmax(query · keyᵀ / √D) · value of what each token sees, [B, N, D]; in float32 inside. No gradient.

    Args:
        query_BND: of the first B rows of the cache; of those that `fits` says yes to.
        places_B: where the keys and values of these tokens are, int64; they see no later ones.
        prefix: places that are seen from everywhere; those of a learned prefix.
        window: how many of the others are seen, the own one included; None: all.
    """
    query_BND, places_B = query_BND.contiguous(), places_B.contiguous()
    output_BND = torch.empty_like(query_BND)
    pointers = (x.data_ptr() for x in (query_BND, keys_BKTD, values_BKTD, output_BND, places_B))
    rows, heads, size = query_BND.shape
    sizes = (rows, heads, keys_BKTD.shape[1], size, prefix, window or 0)
    is_bfloat16, threads = type_and_threads(query_BND)
    call = _Call(*pointers, *keys_BKTD.stride()[:2], *sizes, 1 / math.sqrt(size), is_bfloat16, threads)
    run("decode", ctypes.byref(call))
    return output_BND


class _Call(ctypes.Structure):
    """`DecodeCall` of cpu/decode.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "output", "places")),
        *((name, ctypes.c_int64) for name in ("cache_row", "cache_head", "rows", "heads")),
        *((name, ctypes.c_int64) for name in ("key_value_heads", "head_size", "prefix", "window")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    ]
