"""CUDA or CPU: which device a rank computes on, and what Megatron needs to run without CUDA.

Megatron-core writes `device="cuda"` in its schedules and asks `torch.cuda` for the current device. On a
machine without CUDA `prepare_cpu` answers in its place; where there is CUDA nothing is changed.
"""

import types
from typing import Any

import megatron.core.pipeline_parallel.schedules as megatron_schedules
import megatron.core.tensor_parallel.random as megatron_random
import torch


def has_cuda() -> bool:
    return torch.cuda.is_available()


def rank_device(local_rank: int) -> torch.device:
    """The device that the rank `local_rank` of this machine computes on, made current."""
    if not has_cuda():
        prepare_cpu()
        return torch.device("cpu")
    torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


class _TorchOnCpu(types.ModuleType):
    """`torch`, except that tensors asked for on "cuda" are made on the CPU.

    Given to Megatron's schedules only. (A `TorchFunctionMode` would do as well, but it would cost
    microseconds on every operation of the model.)
    """

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **options)


def prepare_cpu() -> None:
    """Make Megatron-core run without CUDA. May be called again and again."""
    if isinstance(megatron_schedules.torch, _TorchOnCpu):
        return
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.synchronize = lambda device=None: None
    megatron_schedules.torch = _TorchOnCpu()
    # Activation recomputation saves and restores "the CUDA generator": here that is the CPU's.
    megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
