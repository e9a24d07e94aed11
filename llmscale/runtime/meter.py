"""How fast a step was: tokens a second, the share of the hardware's peak, and memory."""

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from llmscale_kernels import matmul

MATRIX_SIZES = (512, 1024, 1536)
"""Of square weights that a CPU's peak is looked for with; the best counts."""
MEASURE_SECONDS = 0.1
"""How long each size is repeated."""

DENSE_BF16_TERAFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "MI300X": 1307.0,
}
"""By a part of the device's name, without sparsity, from the makers' data sheets. Longer parts go first."""


@dataclass(frozen=True)
class StepSpeed:
    step_seconds: float
    tokens_per_second: float
    """Of the whole world."""
    mfu: float | None
    memory_bytes: int
    """Of this rank."""


class Meter:
    """Times steps from one `stop` to the next; `start` again after anything that is not training."""

    def __init__(self, flops_per_token: float, peak_flops: float | None, device: torch.device) -> None:
        """`peak_flops`: operations a second of all devices of the world together, None where unknown."""
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.device = device
        self.start()

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self, tokens: int) -> StepSpeed:
        """The step that ends now trained on `tokens` of all ranks together. The next one starts now."""
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        tokens_per_second = tokens / seconds
        mfu = self.flops_per_token * tokens_per_second / self.peak_flops if self.peak_flops else None
        return StepSpeed(seconds, tokens_per_second, mfu, memory_bytes(self.device))


def memory_bytes(device: torch.device) -> int:
    """Most bytes that tensors took on a GPU since the process began; on a CPU what the process has now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense matrix-multiply peak of one rank's device in operations a second, a multiply-add being two.

    GPUs: the data sheet's bf16 figure, None for a device that is not in the table and for other dtypes.
    CPUs: measured with this process's threads (about a second) and remembered for this machine.
    """
    if device.type == "cuda":
        return table_peak(torch.cuda.get_device_name(device)) if dtype == torch.bfloat16 else None
    by = f"{matmul.library(dtype)}|{torch.get_num_threads()} threads"
    key = f"{_processor()}|{torch.__version__}|{by}|{dtype}"
    cache = _cache_file()
    known = json.loads(cache.read_text()) if cache.exists() else {}
    if key not in known:
        known[key] = measured_peak(dtype)
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known))
        temporary.replace(cache)
    return known[key]


def table_peak(name: str) -> float | None:
    """Peak of the GPU called `name`, or None."""
    for part in sorted(DENSE_BF16_TERAFLOPS, key=len, reverse=True):
        if part in name:
            return DENSE_BF16_TERAFLOPS[part] * 1e12
    return None


def measured_peak(dtype: torch.dtype) -> float:
    """The best rate over `MATRIX_SIZES` on the CPU, by whom the linear layers ask."""
    return max(_rate(size, dtype) for size in MATRIX_SIZES)


def _rate(size: int, dtype: torch.dtype) -> float:
    rows = max(size, matmul.ROWS_OF_A_THREAD * torch.get_num_threads())  # large enough for any library
    left, right = torch.randn(rows, size).to(dtype), torch.randn(size, size).to(dtype)
    matmul.product(left, right)
    best = 0.0
    deadline = time.perf_counter() + MEASURE_SECONDS
    while True:
        began = time.perf_counter()
        matmul.product(left, right)
        ended = time.perf_counter()
        best = max(best, 2 * rows * size**2 / (ended - began))
        if ended > deadline:
            return best


def _processor() -> str:
    """The processor's name; `platform.processor` says nothing on most Linux machines."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmscale" / "peak.json"
