"""Contender: the machine's own matrix-multiply peak, the best over a list of shapes."""

import json
import time

import torch
from llmscale_kernels import matmul

from bench.workload import Workload

SHAPES = [
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 1024, 1024),
    (1024, 4096, 1024),
    (1024, 256, 2048),
    (1024, 512, 3072),
    (1024, 768, 4096),
    (1024, 768, 8192),
]
"""Rows × inner × columns of `A @ B.T`, as a linear layer computes it: squares, and what the models do."""
LIBRARIES = (torch.nn.functional.linear, matmul.product)
"""torch's choice, and that of llmscale's linear layers: the quicker one is the machine's peak."""


def main() -> None:
    workload = Workload.from_command_line()
    torch.set_num_threads(workload.threads)
    dtype = torch.bfloat16 if workload.precision == "bf16" else torch.float32
    rates = {shape: flops_per_second(shape, dtype, workload.seconds / len(SHAPES)) for shape in SHAPES}
    best = max(rates, key=lambda shape: rates[shape])
    print(json.dumps({"flops_per_second": rates[best], "shape": best}))


def flops_per_second(shape: tuple[int, int, int], dtype: torch.dtype, seconds: float) -> float:
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for product in LIBRARIES:
            start = time.perf_counter()
            product(a, b)
            best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


if __name__ == "__main__":
    main()
