"""Products of matrices by cpu/matmul.cpp.

Each element is summed in one order, so that it depends neither on the number of threads nor on what other
rows there are.
"""

import ctypes
import functools

import torch
from torch import Tensor
from torch.nn import Parameter

from llmscale_kernels.cpu.library import choice, is_intel, run, type_and_threads

LEAST_SIZE = 16
"""Of either matrix in either direction: with less, registers stay empty."""
MULTIPLICATIONS_OF_AN_ELEMENT = 64
"""That take about as long as one element does in other operations."""
LEVELS = {torch.float32: ("x86-64-v4", "x86-64-v4-bf16"), torch.bfloat16: ("x86-64-v4-bf16",)}
"""Of processors, as `build.LEVELS` calls them, that the kernel is for."""


def is_quicker(dtype: torch.dtype) -> bool:
    """Whether the kernel is quicker than the libraries of torch on this processor: on those that are not
    Intel's, where it runs. Measured on an AMD EPYC (Zen 4)."""
    return runs(dtype) and not is_intel()


@functools.cache
def runs(dtype: torch.dtype) -> bool:
    """Whether the kernel is built, and this processor has what it needs."""
    library = choice().library
    return library is not None and library.stem in LEVELS.get(dtype, ())


def fits(
    left: Tensor, right: Tensor, left_is_transposed: bool = False, right_is_transposed: bool = False
) -> bool:
    """Whether `multiply` takes these two matrices; False, too, where they have no product.

    Args:
        left, right: as they are in memory.
    """
    if type(left) not in _WITH_MEMORY or type(right) not in _WITH_MEMORY or left.device.type != "cpu":
        return False
    if not runs(left.dtype) or right.dtype != left.dtype or min(*left.shape, *right.shape) < LEAST_SIZE:
        return False
    inner = left.shape[0 if left_is_transposed else 1]
    if inner != right.shape[1 if right_is_transposed else 0] or not left.stride(1) == right.stride(1) == 1:
        return False
    # Two bfloat16 are a word of the processor's, along what is summed over.
    along = [
        *(() if left_is_transposed else (inner, left.stride(0))),
        *((inner, right.stride(0)) if right_is_transposed else ()),
    ]
    return left.dtype == torch.float32 or all(number % 2 == 0 for number in along)


def multiply(
    left: Tensor,
    right: Tensor,
    result: Tensor,
    left_is_transposed: bool = False,
    right_is_transposed: bool = False,
    is_added: bool = False,
) -> Tensor:
    """`result` = or += `left` · `right`, two matrices that `fits` is true of; returns it.

    Args:
        result: of their dtype or float32, its last dimension contiguous.
    """
    rows, columns = left.shape[1 if left_is_transposed else 0], right.shape[0 if right_is_transposed else 1]
    inner = left.shape[0 if left_is_transposed else 1]
    assert result.shape == (rows, columns) and result.stride(1) == 1
    assert result.dtype in (left.dtype, torch.float32)
    _, threads = type_and_threads(result, rows * columns * inner // MULTIPLICATIONS_OF_AN_ELEMENT)
    call = _Call(
        **{name: tensor.data_ptr() for name, tensor in zip(_MATRICES, (left, right, result))},
        **{"rows": rows, "columns": columns, "inner": inner},
        **{f"{name}_stride": tensor.stride(0) for name, tensor in zip(_MATRICES, (left, right, result))},
        left_is_transposed=left_is_transposed,
        right_is_transposed=right_is_transposed,
        is_added=is_added,
        is_bfloat16=left.dtype == torch.bfloat16,
        result_is_float=result.dtype == torch.float32,
        threads=threads,
    )
    run("product", ctypes.byref(call), inputs=(left, right))
    return result


_WITH_MEMORY = (Tensor, Parameter)
"""Their subclasses may have none of their own."""
_MATRICES = ("left", "right", "result")


class _Call(ctypes.Structure):
    """`ProductCall` of matmul.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _MATRICES),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "inner")),
        *((f"{name}_stride", ctypes.c_int64) for name in _MATRICES),
        *((name, ctypes.c_int32) for name in ("left_is_transposed", "right_is_transposed", "is_added")),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "result_is_float", "threads")),
    ]
