"""The products of a linear layer, by torch's own choice and by `llmscale_kernels.matmul`.

    python -m bench.products [--quick] [--rounds N] [--turns N] [--threads N] [--output FOLDER]

float32, GFLOP/s, the median of turns in which both go one after the other; in each round all products have
theirs. `packed` is a product of few rows with a weight that was laid in the processor's order before.
"""

import argparse
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from llmscale_kernels import matmul
from rich.console import Console
from rich.table import Table

from bench.picture import draw_bars
from bench.rounds import machine, write_json
from bench.turns import SideBySide, Work

TRAINED = ((1024, 256, 768), (1024, 256, 2048), (1024, 1024, 256), (1024, 256, 8192), (2048, 768, 4096))
"""Rows × features in × out."""
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
    results["vendor"] = matmul.processor_vendor() or "unknown"
    results["onednn_for_fp32"] = matmul.onednn_is_quicker()
    results["rows"] = compare(*((1, 3) if options.quick else (options.rounds, options.turns)))
    results["machine"]["load_after"] = os.getloadavg()[0]
    write_json(options.output / "products.json", results)
    report(results)
    draw(options.output / "products.png", results, packed=False)
    draw(options.output / "products_packed.png", results, packed=True)


def compare(rounds: int, turns: int) -> list[dict[str, Any]]:
    found: defaultdict[tuple[str, tuple[int, int, int]], SideBySide] = defaultdict(SideBySide)
    for _ in range(rounds):
        for shape in (*TRAINED, *WRITTEN):
            for name, (theirs, ours) in products(*shape).items():
                found[name, shape].take_turns(theirs, ours, turns)
    return [
        {"product": name, "shape": shape, "flops": 2 * shape[0] * shape[1] * shape[2], **pair.summary()}
        for (name, shape), pair in found.items()
    ]


def products(rows: int, inputs: int, outputs: int) -> dict[str, tuple[Work, Work]]:
    """torch's and ours, by name."""
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


def report(results: dict[str, Any]) -> None:
    table = Table("product", "rows × in × out", "torch, GFLOP/s", "llmscale", "ratio")
    for row in results["rows"]:
        cells = [
            f"{row['flops'] / row[name]['seconds'] / 1e9:.0f} ±{row[name]['spread'] / 2:.0%}"
            for name in ("torch", "llmscale")
        ]
        table.add_row(row["product"], shown(row["shape"]), *cells, f"{row['ratio']:.2f}")
    Console(width=100).print(table)
    print("{threads} threads; processor of {vendor}; oneDNN for fp32: {onednn_for_fp32}".format(**results))


def draw(path: Path, results: dict[str, Any], packed: bool) -> None:
    """Those of training, or those of writing; no picture where this processor packs no weights."""
    rows = [row for row in results["rows"] if (row["product"] == "packed") is packed]
    if not rows:
        return
    names, shapes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("product", "shape"))
    ratios = {(row["product"], row["shape"]): row["ratio"] for row in rows}
    title = "Products with packed weights" if packed else "Products of linear layers"
    draw_bars(
        path,
        f"{title}, fp32, {results['threads']} threads: speed, torch = 100 %",
        [shown(shape) for shape in shapes],
        {name: [ratios[name, shape] for shape in shapes] for name in names},
    )


def shown(shape: tuple[int, int, int]) -> str:
    return " × ".join(map(str, shape))


if __name__ == "__main__":
    main()
