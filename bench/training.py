"""Training speed of llmscale on one rank against transformers, and against this machine's own peak.

python -m bench.training [--quick] [--rounds N] [--output FOLDER]
"""

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import peers
from bench.picture import draw_bars
from bench.rounds import Contender, machine, median_and_spread, run_rounds, write_json
from bench.workload import Workload
from llmscale.plan.flops import flops_per_token

PRESETS = ["llama_6m", "llama_32m", "llama_100m"]
PRECISIONS = ["fp32", "bf16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest model, one short round: does it run at all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    presets, rounds, seconds = (PRESETS[:1], 1, 0.5) if options.quick else (PRESETS, options.rounds, 8.0)
    results: dict[str, Any] = {"machine": machine() | {"peers": peers.described()}, "rows": []}
    for preset in presets:
        for precision in PRECISIONS:
            workload = Workload(preset, precision, threads=options.threads, seconds=seconds)
            results["rows"].append(compare(workload, rounds))
            results["machine"]["load_after"] = os.getloadavg()[0]
            write_json(options.output / "training.json", results)
    report(results["rows"])
    draw_bars(
        options.output / "training.png",
        "Training on one rank: share of the machine's matrix-multiply peak",
        [f"{row['preset']}\n{row['precision']}" for row in results["rows"]],
        {
            name: [row[name]["utilisation"] for row in results["rows"]]
            for name in ("llmscale", "transformers")
        },
    )


def compare(workload: Workload, rounds: int) -> dict[str, Any]:
    found = run_rounds(
        [
            Contender("peak", "bench.matmul_peak", workload),
            Contender("transformers", "bench.transformers_loop", workload, peers.interpreter()),
            Contender("llmscale", "bench.llmscale_loop", workload),
        ],
        rounds,
    )
    best = max(found["peak"], key=lambda result: result["flops_per_second"])
    flops = flops_per_token(workload.model, workload.sequence_length, workload.vocabulary_size)
    row: dict[str, Any] = {"preset": workload.preset, "precision": workload.precision, "peak": best}
    for name in ("transformers", "llmscale"):
        speed, spread = median_and_spread([result["tokens_per_second"] for result in found[name]])
        row[name] = {
            "tokens_per_second": speed,
            "spread": spread,
            "utilisation": speed * flops / best["flops_per_second"],
            "rounds": found[name],
        }
    row["ratio"] = row["llmscale"]["tokens_per_second"] / row["transformers"]["tokens_per_second"]
    return row


def report(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "precision", "peak GFLOP/s", "transformers tokens/s", "llmscale tokens/s", "ratio")
    for row in rows:
        cells = [cell(row["transformers"]), cell(row["llmscale"])]
        peak = f"{row['peak']['flops_per_second'] / 1e9:,.0f}"
        table.add_row(row["preset"], row["precision"], peak, *cells, f"{row['ratio']:.2f}")
    Console(width=140).print(table)


def cell(found: dict[str, Any]) -> str:
    half_spread, share = found["spread"] / 2, found["utilisation"]
    return f"{found['tokens_per_second']:,.0f} ±{half_spread:.0%} ({share:.0%} of peak)"


if __name__ == "__main__":
    main()
