"""The products of a linear layer, by torch's own choice and by `llmscale_kernels.matmul`.

    python -m bench.products [--threads N] [--turns N]

float32, GFLOP/s, the median of turns in which both go one after the other. `packed` is a product of few rows
with a weight that was laid in the processor's order before.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from llmscale_kernels import matmul
from rich.console import Console
from rich.table import Table
from torch import Tensor

TRAINED = ((1024, 256, 768), (1024, 256, 2048), (1024, 1024, 256), (1024, 256, 8192), (2048, 768, 4096))
"""Rows × features in × out."""
WRITTEN = ((16, 256, 2048), (64, 256, 768), (64, 1024, 256), (64, 256, 2048), (64, 256, 8192))

Work = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("product", "rows × in × out", "torch", "llmscale", "ratio")
    for rows, inputs, outputs in (*TRAINED, *WRITTEN):
        flops = 2 * rows * inputs * outputs
        for name, (theirs, ours) in products(rows, inputs, outputs).items():
            seconds = side_by_side(theirs, ours, options.turns)
            rates = [flops / one / 1e9 for one in seconds]
            shape = f"{rows} × {inputs} × {outputs}"
            table.add_row(name, shape, *(f"{rate:.0f}" for rate in rates), f"{rates[1] / rates[0]:.2f}")
    Console().print(table)
    maker = matmul.processor_vendor() or "unknown"
    print(f"{options.threads} threads; processor of {maker}; oneDNN for fp32: {matmul.onednn_is_quicker()}")


def products(rows: int, inputs: int, outputs: int) -> dict[str, tuple[Work, Work]]:
    x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    if (rows, inputs, outputs) in TRAINED:
        return {
            "output": (lambda: x @ weight.t(), lambda: matmul.product(x, weight)),
            "gradient of the input": (
                lambda: gradient @ weight,
                lambda: matmul.input_gradient(gradient, weight),
            ),
            "gradient of the weight": (
                lambda: gradient.t() @ x,
                lambda: matmul.weight_gradient(gradient, x),
            ),
        }
    packed = matmul.pack(weight, rows)
    if packed is None:
        return {}
    return {"packed": (lambda: x @ weight.t(), lambda: matmul.packed_product(x, packed))}


def side_by_side(theirs: Work, ours: Work, turns: int) -> list[float]:
    """Median seconds of each; the first turn is not counted."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns + 1):
        for seconds, work in zip(found, (theirs, ours)):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds[1:]) for seconds in found]


if __name__ == "__main__":
    main()
