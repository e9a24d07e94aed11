"""Four ranks of one thread each under every kind of parallelism, against one rank of four threads.

python -m bench.layouts [--quick] [--rounds N] [--output FOLDER]
"""

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.picture import draw_bars
from bench.rounds import Contender, machine, median_and_spread, run_rounds, write_json
from bench.workload import Workload

RANKS = 4
LAYOUTS: dict[str, dict[str, int]] = {
    "1 rank × 4 threads": {},
    "data 4": {},
    "tensor 2 × data 2": {"tensor": 2},
    "pipeline 2 × data 2": {"pipeline": 2},
    "tensor 4": {"tensor": 4},
    "tensor 4, sequence": {"tensor": 4, "sequence": 1},
    "pipeline 4": {"pipeline": 4},
    "tensor 2 × pipeline 2": {"tensor": 2, "pipeline": 2},
}
QUICK = ("1 rank × 4 threads", "data 4", "tensor 2 × data 2", "pipeline 2 × data 2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the smallest model, one layout of each kind, one short round: does it run at all",
    )
    parser.add_argument("--preset", default="llama_32m")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    preset, rounds, seconds = ("llama_6m", 1, 0.5) if options.quick else (options.preset, options.rounds, 8.0)
    layouts = QUICK if options.quick else tuple(LAYOUTS)
    contenders = [contender(name, preset, options.precision, seconds) for name in layouts]
    results: dict[str, Any] = {"machine": machine(), "preset": preset, "precision": options.precision}
    results["rows"] = rows = summary(run_rounds(contenders, rounds))
    results["machine"]["load_after"] = os.getloadavg()[0]
    write_json(options.output / "layouts.json", results)
    report(rows)
    draw_bars(
        options.output / "layouts.png",
        f"{preset}, {options.precision}: speed of 4 ranks × 1 thread relative to 1 rank × 4 threads",
        [row["layout"].replace(", ", ",\n").replace(" × ", "\n× ") for row in rows],
        {"relative": [row["relative"] for row in rows]},
    )


def contender(name: str, preset: str, precision: str, seconds: float) -> Contender:
    """32 sequences a step in microbatches of 1: a pipeline needs many, and all are to do the same work."""
    ranks = 1 if name.startswith("1 rank") else RANKS
    workload = Workload(
        preset,
        precision,
        sequences=32,
        micro_batch_size=1,
        threads=RANKS // ranks,
        seconds=seconds,
        ranks=ranks,
        parallel=LAYOUTS[name],
    )
    return Contender(name, "bench.llmscale_loop", workload)


def summary(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Median speed of each layout, also relative to the first one."""
    speeds = {
        name: median_and_spread([result["tokens_per_second"] for result in found])
        for name, found in results.items()
    }
    single = next(iter(speeds.values()))[0]
    return [
        {
            "layout": name,
            "tokens_per_second": speed,
            "spread": spread,
            "relative": speed / single,
            "rounds": results[name],
        }
        for name, (speed, spread) in speeds.items()
    ]


def report(rows: list[dict[str, Any]]) -> None:
    table = Table("layout", "tokens/s", "spread", "relative")
    for row in rows:
        speed = f"{row['tokens_per_second']:,.0f}"
        table.add_row(row["layout"], speed, f"±{row['spread'] / 2:.0%}", f"{row['relative']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
