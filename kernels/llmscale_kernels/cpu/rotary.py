"""Rotary position embedding by cpu/rotary.cpp."""

import ctypes

from torch import Tensor

from llmscale_kernels.cpu.library import LANES, Strides, library_for, run, type_and_threads


def fits(heads_SBND: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor) -> bool:
    """Whether `turn` takes them."""
    if heads_SBND.shape[-1] % (2 * LANES) or cosine_SBD.dtype != heads_SBND.dtype:
        return False
    is_dense = all(tensor.stride(-1) == 1 for tensor in (heads_SBND, cosine_SBD, sine_SBD))
    return is_dense and cosine_SBD.stride() == sine_SBD.stride() and library_for(heads_SBND) is not None


def turn(heads_SBND: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor, out_SBND: Tensor, sign: int) -> Tensor:
    """Turn by the angles (`sign` 1) or back (-1), into `out`, which is returned."""
    sequence, batch, heads, size = heads_SBND.shape
    is_bfloat16, threads = type_and_threads(heads_SBND)
    pointers = (x.data_ptr() for x in (heads_SBND, cosine_SBD, sine_SBD, out_SBND))
    angles = Strides(cosine_SBD.stride(0), cosine_SBD.stride(1) if cosine_SBD.shape[1] > 1 else 0, 0)
    strides = (Strides(*heads_SBND.stride()[:3]), Strides(*out_SBND.stride()[:3]), angles)
    call = _Call(*pointers, *strides, sequence, batch, heads, size, sign, is_bfloat16, threads)
    run("rotary", ctypes.byref(call))
    return out_SBND


class _Call(ctypes.Structure):
    """`RotaryCall` of rotary.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("from_", "cosine", "sine", "to")),
        *((name, Strides) for name in ("of_from", "of_to", "of_angles")),
        *((name, ctypes.c_int64) for name in ("positions", "rows", "heads", "head_size")),
        ("sign", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    ]
