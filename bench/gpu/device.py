"""The device that is measured: its name, what its data sheet promises, and the software on it."""

import importlib.metadata
import re
import shutil
import subprocess
from typing import Any

import torch
from llmscale_kernels.dispatch import path_and_reason

from bench.rounds import machine

DATASHEETS = {
    r"NVIDIA H100 80GB HBM3": 989.4e12,  # the SXM module
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA H200": 989.4e12,
    r"NVIDIA A100-(SXM4?|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": 312e12,
}
"""Operations a second on dense bf16 matrices, by torch's name of the whole device; a MIG slice has another
name, and no peak. From NVIDIA's data sheets of the H100, H200 and A100 Tensor Core GPUs; where these tell the
rate of sparse matrices, half of it."""

NO_DEVICE = (
    "no CUDA device: torch {version} finds none here. On a machine with an NVIDIA GPU, install torch's wheel "
    "for CUDA and see what nvidia-smi says; to try the program without a GPU: --device cpu --quick"
)


def found_device(name: str) -> torch.device:
    """
    Args:
        name: cuda or cpu.

    Raises:
        LookupError: there is no such device; says what to do.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LookupError(NO_DEVICE.format(version=torch.__version__))
    return torch.device("cuda", 0)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(machine()["processor"])


def datasheet_flops_per_second(name: str) -> float | None:
    """Of dense bf16 matrices; None where no data sheet is known for a device of this name."""
    return next((peak for pattern, peak in DATASHEETS.items() if re.fullmatch(pattern, name)), None)


def description(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return {
        **machine(),
        "device": device_name(device),
        "device_memory_bytes": memory,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "kernels": path_and_reason(device.type == "cuda"),
        **{name: version_of(name) for name in ("triton", "transformers", "liger-kernel")},
    }


def driver() -> str | None:
    """Version of NVIDIA's driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.strip() else None


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
