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
