"""Attention of one new token of each row of text to what a cache holds of the row.

Shapes: B rows, N query heads, K key-value heads, T places of a row, D head size.
"""

import ctypes
import math

from torch import Tensor

from llmscale_kernels.cpu.library import LANES, library_for, run, type_and_threads


def fits(query_BND: Tensor, keys_BKTD: Tensor) -> bool:
    """Whether `decode` takes them."""
    size = keys_BKTD.shape[3]
    is_dense = keys_BKTD.stride()[2:] == (size, 1) and query_BND.stride(-1) == 1
    return is_dense and size % LANES == 0 and library_for(query_BND) is not None


def decode(
    query_BND: Tensor,
    key_BKD: Tensor,
    value_BKD: Tensor,
    keys_BKTD: Tensor,
    values_BKTD: Tensor,
    places_B: Tensor,
    prefix: int = 0,
    window: int | None = None,
) -> Tensor:
    """Puts the keys and values of new tokens into the cache, and returns what each token sees there, weighed
    by softmax(query · keyᵀ / √D): [B, N, D]; in float32 inside. No gradient.

    Args:
        query_BND: of the first B rows of the cache; of those that `fits` says yes to.
        key_BKD: of the same tokens; with values, of the same strides in the last dimension.
        keys_BKTD: the cache; with values, of the same strides.
        places_B: where the tokens belong, int64; they see no later ones.
        prefix: places that are seen from everywhere; those of a learned prefix.
        window: how many of the others are seen, the own one included; None: all.
    """
    places_B, output_BND = places_B.contiguous(), query_BND.new_empty(query_BND.shape)
    new = (query_BND, key_BKD, value_BKD)
    tensors = (*new, keys_BKTD, values_BKTD, output_BND, places_B)
    strides = [stride for tensor in (*new, keys_BKTD) for stride in tensor.stride()[:2]]
    rows, heads, size = query_BND.shape
    sizes = (rows, heads, keys_BKTD.shape[1], size, prefix, window or 0)
    last = (1 / math.sqrt(size), *type_and_threads(query_BND, keys_BKTD.numel()))
    call = _Call(*(tensor.data_ptr() for tensor in tensors), *strides, *sizes, *last)
    run("decode", ctypes.byref(call))
    return output_BND


class _Call(ctypes.Structure):
    """`DecodeCall` of cpu/decode.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("query", "key", "value", "keys", "values", "output", "places")
        ),
        *((name, ctypes.c_int64) for name in ("query_row", "query_head", "key_row", "key_head")),
        *((name, ctypes.c_int64) for name in ("value_row", "value_head", "cache_row", "cache_head")),
        *((name, ctypes.c_int64) for name in ("rows", "heads")),
        *((name, ctypes.c_int64) for name in ("key_value_heads", "head_size", "prefix", "window")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    ]
