"""The library of C++ kernels that this processor runs, if it has been built."""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _RecordFunctionFast  # torch.profiler's record_function takes no tensors

from llmscale_kernels.cpu import build

SIGNATURES = {
    "attention_forward": "p",
    "attention_backward": "p",
    "cross_entropy_forward": "p",
    "cross_entropy_backward": "p",
    "decode": "p",
    "product": "p",
    "rms_norm_forward": "ppppppnnfii",
    "rms_norm_backward": "pppppppnnnii",
    "rotary": "p",
    "swiglu_forward": "ppnnii",
    "swiglu_backward": "pppnnii",
    "token_weights": "p",
}
"""What the functions take: p a pointer, n an int64_t, i an int32_t, f a float."""
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float}


class Strides(ctypes.Structure):
    """Of a tensor [position, row, head, size], in elements: the struct of vector.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("position", "row", "head")]


@dataclass(frozen=True)
class Choice:
    """Which library, or none, and why."""

    library: Path | None
    reason: str


LANES = 16
"""Rows of tensors come in multiples of it."""
LEAST_OF_THREADS = 1 << 15
"""Elements that are worth waking the other threads for."""


def run(name: str, *arguments: Any, inputs: Sequence[Tensor] = ()) -> None:
    """Call one of `SIGNATURES` for tensors that there are kernels for. Profilers see it by its name.

    Args:
        inputs: whose shapes they see, too.
    """
    library = loaded()
    assert library is not None
    function = getattr(library, name)
    if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
        with _RecordFunctionFast(f"llmscale::{name.removesuffix('_forward')}", list(inputs)):
            function(*arguments)
    else:
        function(*arguments)


def library_for(tensor: Tensor) -> ctypes.CDLL | None:
    """The kernels, for a tensor that they can work on: on a CPU, in float32 or bfloat16."""
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.bfloat16):
        return None
    return loaded()


@functools.cache
def loaded() -> ctypes.CDLL | None:
    path = choice().library
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    for name, signature in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in signature], None
    return library


def type_and_threads(tensor: Tensor, elements: int | None = None) -> tuple[int, int]:
    """What most functions end with.

    Args:
        elements: that the function goes over; None: those of the tensor.
    """
    # All or one: a team of another size than the last one's is made anew.
    is_small = (tensor.numel() if elements is None else elements) <= LEAST_OF_THREADS
    return int(tensor.dtype == torch.bfloat16), 1 if is_small else torch.get_num_threads()


def choice() -> Choice:
    """What `loaded` takes."""
    flags = _processor_flags()
    level = next((level for level, wanted in build.LEVELS.items() if flags.issuperset(wanted.split())), None)
    if level is None:
        return Choice(None, "this processor has no AVX2, for which they are written")
    library = build.folder() / f"{level}.so"
    if not library.exists():
        return Choice(None, "they are not built: python -m llmscale_kernels.cpu.build")
    return Choice(library, f"C++ for {level}")


@functools.cache
def is_intel() -> bool:
    return processor_vendor() == "GenuineIntel"


def processor_vendor() -> str:
    """As an x86 processor calls its maker; empty where it cannot be asked."""
    return _said_of_the_processor("vendor_id")


def _processor_flags() -> set[str]:
    return set(_said_of_the_processor("flags").split())


def _said_of_the_processor(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
