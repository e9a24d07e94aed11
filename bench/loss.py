"""Output layer and loss, forward and backward: what it takes in memory and time.

    python -m bench.loss [--quick] [--rounds N] [--turns N] [--threads N] [--output FOLDER]
        [--vocabulary V] [--tokens T] [--hidden H]

float32, each way in fresh processes, in interleaved rounds. Memory is what a process grew by at its peak,
gradients of weight and hidden states included; a round's seconds are the median of its turns after the first.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.loss_way import LossWorkload
from bench.picture import draw_bars
from bench.rounds import Contender, machine, median_and_spread, run_rounds, write_json

WAYS = {"torch": "torch", "whole": "llmscale, whole logits", "parts": "llmscale, a few tokens at a time"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, one short round: does it run at all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3, help="of a round")
    parser.add_argument("--vocabulary", type=int, default=128 * 1024)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.turns, options.vocabulary, options.tokens = 1, 1, 8192, 1024
    sizes = {name: getattr(options, name) for name in ("vocabulary", "tokens", "hidden", "threads", "turns")}
    results: dict[str, Any] = {"machine": machine(), **sizes}
    results["rows"] = compare(sizes, options.rounds)
    results["machine"]["load_after"] = os.getloadavg()[0]
    write_json(options.output / "loss.json", results)
    report(results["rows"])
    draw_bars(
        options.output / "loss.png",
        f"Output layer and loss, vocabulary of {options.vocabulary:,}: what they take, torch = 100 %",
        [row["way"].replace(", ", ",\n") for row in results["rows"]],
        {name: [row[f"{name}_share"] for row in results["rows"]] for name in ("mebibytes", "seconds")},
    )


def compare(sizes: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    """Medians over the rounds, each also as a share of torch's."""
    contenders = [Contender(name, "bench.loss_way", LossWorkload(way, **sizes)) for way, name in WAYS.items()]
    rows: list[dict[str, Any]] = []
    for name, found in run_rounds(contenders, rounds).items():
        row: dict[str, Any] = {"way": name, "rounds": found}
        for what in ("mebibytes", "seconds"):
            row[what], row[f"{what}_spread"] = median_and_spread([one[what] for one in found])
            row[f"{what}_share"] = row[what] / (rows[0] if rows else row)[what]
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    table = Table("way", "MiB", "of torch's", "seconds", "of torch's")
    for row in rows:
        seconds = f"{row['seconds']:.2f} ±{row['seconds_spread'] / 2:.0%}"
        shares = [f"{row[f'{what}_share']:.0%}" for what in ("mebibytes", "seconds")]
        table.add_row(row["way"], f"{row['mebibytes']:,.0f}", shares[0], seconds, shares[1])
    Console().print(table)


if __name__ == "__main__":
    main()
