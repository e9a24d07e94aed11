"""Speed of supervised fine-tuning on one rank against TRL's `SFTTrainer`, packed and one example a row.

python -m bench.sft [--quick] [--rounds N] [--threads N] [--output FOLDER]

Each packs by its own best fit, and in both an example sees itself only: transformers tells the examples of a
packed row by their positions, and gives SDPA a mask of blocks (`tests/distributed/test_sft_against_trl.py`
has the same losses of both). Each runs with one row at a time and with several; the quicker one counts.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import peers
from bench.picture import draw_bars
from bench.rounds import Contender, machine, median_and_spread, run_rounds, write_json
from bench.sft_workload import TuningWorkload

PRESET = "llama_6m"
NAMES = ("TRL", "llmscale")
ROWS = (1, 4)
"""At once. Several padded rows are as long as their longest; several packed ones TRL lays end to end into one
sequence, whose attention grows with its square."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, 8.0)
    results: dict[str, Any] = {"machine": machine() | {"peers": peers.described()}}
    results |= {"threads": options.threads, "rows": []}
    for packing in (False, True):
        workload = TuningWorkload(PRESET, "fp32", threads=options.threads, seconds=seconds, packing=packing)
        results["rows"].append(compare(workload, rounds))
        results["machine"]["load_after"] = os.getloadavg()[0]
        write_json(options.output / "sft.json", results)
    report(results["rows"])
    draw_bars(
        options.output / "sft.png",
        f"Supervised fine-tuning of {PRESET}, fp32, one rank: useful tokens a second, TRL = 100 %",
        [row["rows"] for row in results["rows"]],
        {name: [speed_of(row[name]) / speed_of(row["TRL"]) for row in results["rows"]] for name in NAMES},
    )


def compare(workload: TuningWorkload, rounds: int) -> dict[str, Any]:
    programs = {
        "TRL": ("bench.sft_trl", peers.interpreter()),
        "llmscale": ("bench.sft_llmscale", sys.executable),
    }
    contenders = [
        Contender(f"{name}, {rows} at once", module, replace(workload, micro_batch_size=rows), interpreter)
        for name, (module, interpreter) in programs.items()
        for rows in ROWS
    ]
    row: dict[str, Any] = {"rows": "packed" if workload.packing else "one example a row"}
    for name, results in run_rounds(contenders, rounds).items():
        speed, spread = median_and_spread([result["tokens_per_second"] for result in results])
        row[name] = {"tokens_per_second": speed, "spread": spread, "rounds": results}
    for name in NAMES:
        row[name] = max((row[f"{name}, {rows} at once"] for rows in ROWS), key=speed_of)
    row["ratio"] = speed_of(row["llmscale"]) / speed_of(row["TRL"])
    return row


def speed_of(result: dict[str, Any]) -> float:
    return result["tokens_per_second"]


def report(rows: list[dict[str, Any]]) -> None:
    names = [f"{name}, {rows} at once" for name in NAMES for rows in ROWS]
    table = Table("rows", *(f"{name}, useful tokens/s" for name in names), "ratio")
    for row in rows:
        cells = [f"{row[name]['tokens_per_second']:,.0f} ±{row[name]['spread'] / 2:.0%}" for name in names]
        table.add_row(row["rows"], *cells, f"{row['ratio']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
