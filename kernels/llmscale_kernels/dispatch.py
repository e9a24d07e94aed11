"""Who computes the element-wise operations: Triton's kernels on GPUs, else those of `llmscale_kernels.cpu`
where they are built, else torch.

Triton comes with torch's wheels for GPUs. Nothing here imports it: `llmscale_kernels.gpu` does, which is
imported when the first operation takes it, so never in a run on CPUs.
"""

import functools
import importlib.metadata
import importlib.util
import os
from types import ModuleType

from torch import Tensor

from llmscale_kernels.cpu import cross_entropy as cpu_cross_entropy

SWITCH = "LLMSCALE_TRITON"
"""Environment variable: 0 leaves the operations to torch on GPUs, too."""
INTERPRETER = "TRITON_INTERPRET"
"""Triton's own: 1 runs its kernels on CPUs, one program after another, for tests."""


def takes_triton(tensor: Tensor) -> bool:
    """Whether operations on this tensor are those of `llmscale_kernels.gpu`."""
    if tensor.is_cuda:
        return has_triton() and not is_switched_off()
    return tensor.device.type == "cpu" and is_interpreted() and not is_switched_off()


def softmax_kernels(logits_TV: Tensor) -> ModuleType | None:
    """`llmscale_kernels.gpu.cross_entropy`, or that of `llmscale_kernels.cpu`, which has the same functions;
    None where torch computes."""
    if takes_triton(logits_TV):
        from llmscale_kernels.gpu import cross_entropy as gpu  # noqa: PLC0415 -- only there is Triton

        return gpu
    return cpu_cross_entropy if cpu_cross_entropy.fits(logits_TV) else None


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def is_switched_off() -> bool:
    return os.environ.get(SWITCH) == "0"


@functools.cache
def is_interpreted() -> bool:
    return os.environ.get(INTERPRETER) == "1" and has_triton()


def path_and_reason(has_gpu: bool) -> str:
    """Which path the operations take on this machine, for people."""
    if is_switched_off():
        return f"torch ({SWITCH}=0)"
    if not has_gpu and not is_interpreted():
        return "those for CPUs (no CUDA device)"
    if not has_triton():
        return "torch (Triton is not installed)"
    return f"Triton {_version()}" + (f" in its interpreter ({INTERPRETER}=1)" if is_interpreted() else "")


def _version() -> str:
    """Of the distribution that has the module: wheels for AMD's GPUs name it otherwise."""
    names = importlib.metadata.packages_distributions().get("triton", [])
    return importlib.metadata.version(names[0]) if names else "of unknown version"
