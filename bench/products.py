"""The products of a linear layer, by torch's own choice and by `llmscale_kernels.matmul`.

    python -m bench.products [--quick] [--rounds N] [--turns N] [--threads N] [--output FOLDER]

float32 and bfloat16, GFLOP/s, the median of turns in which both go one after the other; in each round all
products have theirs. `packed` is a product of few rows with a weight that was laid in the processor's order
before.
"""

import argparse
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from llmscale_kernels import matmul
from llmscale_kernels.cpu.library import processor_vendor
from rich.console import Console
from rich.table import Table

from bench.picture import draw_bars
from bench.rounds import machine, write_json
from bench.turns import SideBySide, Work

TRAINED = ((1024, 256, 768), (1024, 256, 2048), (1024, 1024, 256), (1024, 256, 8192), (2048, 768, 4096))
"""Rows × features in × out."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WRITTEN = ((16, 256, 2048), (64, 256, 768), (64, 1024, 256), (64, 256, 2048), (64, 256, 8192))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--turns", type=int, default=40, help="of each product in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"machine": machine(), "threads": options.threads}
    results["vendor"] = processor_vendor() or "unknown"
    results["libraries"] = {name: matmul.library(dtype) for name, dtype in TYPES.items()}
    results["rows"] = compare(*((1, 3) if options.quick else (options.rounds, options.turns)))
    results["machine"]["load_after"] = os.getloadavg()[0]
    write_json(options.output / "products.json", results)
    report(results)
    for precision in TYPES:
        draw(options.output / f"products_{precision}.png", results, precision, packed=False)
        draw(options.output / f"products_{precision}_packed.png", results, precision, packed=True)


def compare(rounds: int, turns: int) -> list[dict[str, Any]]:
    found: defaultdict[tuple[str, str, tuple[int, int, int]], SideBySide] = defaultdict(SideBySide)
    for _ in range(rounds):
        for precision, dtype in TYPES.items():
            for shape in (*TRAINED, *WRITTEN):
                for name, (theirs, ours) in products(*shape, dtype).items():
                    found[precision, name, shape].take_turns(theirs, ours, turns)
    return [
        {"precision": precision, "product": name, "shape": shape, "flops": 2 * math.prod(shape)}
        | pair.summary()
        for (precision, name, shape), pair in found.items()
    ]


def products(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    """torch's and ours, by name."""
    shapes = (rows, inputs), (outputs, inputs), (rows, outputs)
    x, weight, gradient = (torch.randn(shape).to(dtype) for shape in shapes)
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


def report(results: dict[str, Any]) -> None:
    table = Table("precision", "product", "rows × in × out", "torch, GFLOP/s", "llmscale", "ratio")
    for row in results["rows"]:
        cells = [
            f"{row['flops'] / row[name]['seconds'] / 1e9:.0f} ±{row[name]['spread'] / 2:.0%}"
            for name in ("torch", "llmscale")
        ]
        table.add_row(row["precision"], row["product"], shown(row["shape"]), *cells, f"{row['ratio']:.2f}")
    Console(width=100).print(table)
    print("{threads} threads; processor of {vendor}; by {libraries}".format(**results))


def draw(path: Path, results: dict[str, Any], precision: str, packed: bool) -> None:
    """Those of training, or those of writing; no picture where this processor packs no weights."""
    rows = [row for row in results["rows"] if row["precision"] == precision]
    rows = [row for row in rows if (row["product"] == "packed") is packed]
    if not rows:
        return
    names, shapes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("product", "shape"))
    ratios = {(row["product"], row["shape"]): row["ratio"] for row in rows}
    title = "Products with packed weights" if packed else "Products of linear layers"
    draw_bars(
        path,
        f"{title}, {precision}, {results['threads']} threads: speed, torch = 100 %",
        [shown(shape) for shape in shapes],
        {name: [ratios[name, shape] for shape in shapes] for name in names},
    )


def shown(shape: tuple[int, int, int]) -> str:
    return " × ".join(map(str, shape))


if __name__ == "__main__":
    main()
