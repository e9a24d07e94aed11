"""The C++ kernels of CPUs beside torch's own operations.

    python -m bench.kernels [--quick] [--rounds N] [--turns N] [--threads N] [--output FOLDER]

Milliseconds of a call, the median of turns in which both go one after the other, forward and backward; in
each round all kernels have theirs. Sizes are those of `llama_32m` with 4 rows of 512 tokens; decoding is of
64 rows with 256 tokens behind them.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from llmscale_kernels.attention import attention
from llmscale_kernels.cpu import library
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.decode import decode
from llmscale_kernels.norm import add_and_rms_norm, rms_norm
from llmscale_kernels.rotary import rotate, rotate_reference
from llmscale_kernels.swiglu import swiglu, swiglu_reference
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.picture import draw_bars
from bench.rounds import machine, write_json
from bench.turns import SideBySide, Work

SEQUENCE, ROWS, HEADS, HEAD_SIZE, HIDDEN, FEATURES, VOCABULARY = 512, 4, 8, 64, 512, 1536, 8192
PACKED = (100, 37, 150, 64, 161)
"""Documents of a row."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--turns", type=int, default=20, help="of each kernel in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"machine": machine(), "threads": options.threads}
    results["kernels"] = library.choice().reason
    results["rows"] = compare(*((1, 3) if options.quick else (options.rounds, options.turns)))
    results["machine"]["load_after"] = os.getloadavg()[0]
    write_json(options.output / "kernels.json", results)
    report(results)
    ratios = {(row["kernel"], row["precision"]): row["ratio"] for row in results["rows"]}
    names = list(dict.fromkeys(name for name, _ in ratios))
    draw_bars(
        options.output / "kernels.png",
        f"Kernels for CPUs, {options.threads} threads: speed, torch's operations = 100 %",
        [name.replace(", ", ",\n") for name in names],
        {precision: [ratios[name, precision] for name in names] for precision in PRECISIONS},
    )


def compare(rounds: int, turns: int) -> list[dict[str, Any]]:
    found: defaultdict[tuple[str, str], SideBySide] = defaultdict(SideBySide)
    for _ in range(rounds):
        for precision, dtype in PRECISIONS.items():
            for name, theirs, ours in contenders(dtype):
                found[name, precision].take_turns(theirs, ours, turns)
    return [
        {"kernel": name, "precision": precision, **pair.summary()}
        for (name, precision), pair in found.items()
    ]


def report(results: dict[str, Any]) -> None:
    table = Table("kernel", "precision", "torch, ms", "llmscale, ms", "ratio")
    for row in results["rows"]:
        cells = [
            f"{1e3 * row[name]['seconds']:.2f} ±{row[name]['spread'] / 2:.0%}"
            for name in ("torch", "llmscale")
        ]
        table.add_row(row["kernel"], row["precision"], *cells, f"{row['ratio']:.2f}")
    Console(width=100).print(table)
    print("{threads} threads; {kernels}".format(**results))


def contenders(dtype: torch.dtype) -> Iterator[tuple[str, Work, Work]]:
    """Name, torch's and ours."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).requires_grad_()

    query, key, value = (made(ROWS, HEADS, SEQUENCE, HEAD_SIZE) for _ in range(3))
    lengths = ((SEQUENCE,),) * ROWS
    yield (
        "attention",
        both_ways(
            lambda *x: F.scaled_dot_product_attention(*x, is_causal=True).permute(2, 0, 1, 3).flatten(2),
            query,
            key,
            value,
        ),
        both_ways(
            lambda *x: attention(*(t.permute(2, 0, 1, 3) for t in x), lengths).flatten(2), query, key, value
        ),
    )
    packed = (PACKED,) * ROWS
    yield (
        "attention, 5 documents a row",
        both_ways(one_by_one, query, key, value),
        both_ways(
            lambda *x: attention(*(t.permute(2, 0, 1, 3) for t in x), packed).flatten(2), query, key, value
        ),
    )
    hidden, weight = made(SEQUENCE, ROWS, HIDDEN), made(HIDDEN)
    yield (
        "RMSNorm",
        both_ways(lambda x, w: F.rms_norm(x, (HIDDEN,), w, 1e-5), hidden, weight),
        both_ways(lambda x, w: rms_norm(x, w, 1e-5), hidden, weight),
    )
    yield (
        "residual and RMSNorm",
        both_ways(norm_of_sum, hidden, made(SEQUENCE, ROWS, HIDDEN), weight),
        both_ways(
            lambda x, y, w: add_and_rms_norm(x, y, w, 1e-5), hidden, made(SEQUENCE, ROWS, HIDDEN), weight
        ),
    )
    mixed = made(SEQUENCE, ROWS, 2 * FEATURES)
    yield "SwiGLU", both_ways(swiglu_reference, mixed), both_ways(swiglu, mixed)
    heads, angles = made(SEQUENCE, ROWS, HEADS, HEAD_SIZE), torch.randn(SEQUENCE, 1, HEAD_SIZE).to(dtype)
    yield (
        "rotary positions",
        both_ways(lambda x: rotate_reference(x, angles, angles), heads),
        both_ways(lambda x: rotate(x, angles, angles), heads),
    )
    logits, labels = made(SEQUENCE * ROWS, VOCABULARY), torch.randint(0, VOCABULARY, (SEQUENCE * ROWS,))
    yield (
        "cross-entropy",
        both_ways(lambda x: F.cross_entropy(x.float(), labels, reduction="none"), logits),
        both_ways(lambda x: cross_entropy(x * 1, labels, 0, VOCABULARY), logits),
    )
    yield decoding(dtype)


def one_by_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each document's attention by itself, [S, B, N × D]."""
    parts = [x.split(PACKED, dim=2) for x in (query, key, value)]
    attended = [F.scaled_dot_product_attention(*one, is_causal=True) for one in zip(*parts)]
    return torch.cat(attended, dim=2).permute(2, 0, 1, 3).flatten(2)


def norm_of_sum(hidden: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = hidden + residual
    return F.rms_norm(total, (HIDDEN,), weight, 1e-5), total


def both_ways(operation: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> Work:
    """Forward and backward."""

    def outputs() -> tuple[Tensor, ...]:
        found = operation(*inputs)
        return found if isinstance(found, tuple) else (found,)

    gradients = [torch.randn_like(output) for output in outputs()]

    def work() -> Tensor:
        return torch.autograd.grad(outputs(), inputs, gradients)[0]

    return work


def decoding(dtype: torch.dtype) -> tuple[str, Work, Work]:
    rows, behind = 64, 256
    keys, values = (torch.randn(rows, HEADS, behind, HEAD_SIZE).to(dtype) for _ in range(2))
    query, key, value = (torch.randn(rows, HEADS, HEAD_SIZE).to(dtype) for _ in range(3))
    places = torch.full((rows,), behind - 1)
    mask = torch.zeros(rows, 1, 1, behind, dtype=dtype)
    return (
        "decoding",
        lambda: F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=mask),
        lambda: decode(query, key, value, keys, values, places),
    )


if __name__ == "__main__":
    main()
