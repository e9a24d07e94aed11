"""How kernels are started."""

from typing import Any

import torch


def launch(kernel: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Starts so many programs of a kernel, on the device of its first argument, which is a tensor.

    Args:
        constants: what is compiled into the kernel, and Triton's options.
    """
    with torch.cuda.device_of(arguments[0]):
        kernel[programs](*arguments, **constants)


def parts_of(number: int, size: int) -> int:
    """How many parts of this size have so many."""
    return -(-number // size)


def power_of_2(number: int) -> int:
    """The next one that is no smaller."""
    return 1 << max(0, number - 1).bit_length()
