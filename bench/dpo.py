"""Speed of DPO on one rank against TRL's `DPOTrainer`: the reference computed before, or in each step.

python -m bench.dpo [--pairs FILE] [--quick] [--rounds N] [--threads N] [--busy] [--output FOLDER]

FILE has a record `prompt`, `chosen`, `rejected` (texts) a line; without it the pairs are made up. Both train
on the same tokens from random weights, about as many pairs a step, and with the same losses
(`tests/distributed/test_preferences_against_trl.py`). TRL pads the pairs of a microbatch to their longest
answer, and runs with several at once; llmscale packs pairs into rows, and runs with rows of several lengths.
The quickest of each counts. What computing the reference before costs is not counted.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import peers
from bench.dpo_workload import PreferenceWorkload, made_up_pairs, pairs_of_file, write_pairs
from bench.picture import draw_bars
from bench.rounds import Contender, machine, median_and_spread, run_rounds, write_json

PRESET = "llama_6m"
PAIRS, PAIRS_A_STEP = 256, 16
LONGEST = 1024
"""Tokens of a pair, both answers with the prompt before each."""
PAIRS_AT_ONCE = (1, 2, 4, 8)
"""Of TRL."""
ROW_LENGTHS = (1024, 2048)
"""Of llmscale, a row at once."""
REFERENCES = {"precomputed": "computed before", "held": "computed in each step"}
NAMES = ("TRL", "llmscale")
SPEEDS = ("pairs", "tokens", "computed")
"""`tokens` are those with a label to predict, `computed` all that the model reads, padding included."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="jsonl with prompt, chosen and rejected")
    parser.add_argument(
        "--quick", action="store_true", help="one short round of the first way of each: does it run"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", action="store_true", help="one thread, by the processor's seconds")
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    rounds, seconds, count = (1, 1.0, 32) if options.quick else (options.rounds, 25.0, PAIRS)
    file = options.output / "dpo_pairs.jsonl"
    workload = PreferenceWorkload(
        PRESET,
        "fp32",
        sequences=PAIRS_A_STEP,
        sequence_length=LONGEST,
        threads=1 if options.busy else options.threads,
        seconds=seconds,
        micro_batch_size=1,
        file=str(file.absolute()),
        by_cpu=options.busy,
    )
    results: dict[str, Any] = {"machine": machine() | {"peers": peers.described()}}
    results |= {"threads": workload.threads, "by_cpu": options.busy, "rows": []}
    results["pairs"] = prepare(workload, options.pairs, count, file)
    for reference in REFERENCES:
        ways = 1 if options.quick else None
        results["rows"].append(compare(replace(workload, reference=reference), rounds, ways))
        results["machine"]["load_after"] = os.getloadavg()[0]
        write_json(options.output / "dpo.json", results)
    report(results)
    draw_bars(
        options.output / "dpo.png",
        f"DPO of {PRESET}, fp32, one rank: pairs a second, TRL = 100 %",
        [f"reference\n{row['reference']}" for row in results["rows"]],
        {name: [row[name]["pairs"] / row["TRL"]["pairs"] for row in results["rows"]] for name in NAMES},
    )


def prepare(workload: PreferenceWorkload, source: Path | None, count: int, file: Path) -> dict[str, Any]:
    """Write the pairs to `file`; returns what they are."""
    vocabulary = workload.vocabulary_size
    if source is None:
        pairs = made_up_pairs(count, vocabulary, LONGEST)
    else:
        pairs = pairs_of_file(source, count, vocabulary, LONGEST)
    write_pairs(pairs, file)
    lengths = [length for pair in pairs for length in (len(pair.chosen), len(pair.rejected))]
    return {
        "source": source.name if source else "made up",
        "count": len(pairs),
        "mean_prompt": sum(len(pair.prompt) for pair in pairs) / len(pairs),
        "mean_answer": sum(lengths) / len(lengths),
    }


def compare(workload: PreferenceWorkload, rounds: int, ways: int | None) -> dict[str, Any]:
    """
    Args:
        ways: how many of each contender's take part, None: all.
    """
    contenders = {
        "TRL": [
            Contender(
                f"TRL, {pairs} at once",
                "bench.dpo_trl",
                replace(workload, micro_batch_size=pairs),
                peers.interpreter(),
            )
            for pairs in PAIRS_AT_ONCE[:ways]
        ],
        "llmscale": [
            Contender(
                f"llmscale, rows of {length}", "bench.dpo_llmscale", replace(workload, sequence_length=length)
            )
            for length in ROW_LENGTHS[:ways]
        ],
    }
    found = run_rounds([one for several in contenders.values() for one in several], rounds)
    row: dict[str, Any] = {"reference": REFERENCES[workload.reference]}
    row["ways"] = {name: summary(results) for name, results in found.items()}
    for name, several in contenders.items():
        row[name] = max((row["ways"][one.name] for one in several), key=lambda way: way["pairs"])
    row["ratio"] = row["llmscale"]["pairs"] / row["TRL"]["pairs"]
    row["of_padding"] = useful(row["llmscale"]) / useful(row["TRL"])
    return row


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    speeds = {
        name: median_and_spread([result[f"{name}_per_second"] for result in results]) for name in SPEEDS
    }
    medians = {name: speed for name, (speed, _) in speeds.items()}
    return {**medians, "spread": speeds["pairs"][1], "rounds": results}


def useful(way: dict[str, Any]) -> float:
    """Share of what is computed that is no padding."""
    return way["tokens"] / way["computed"]


def report(results: dict[str, Any]) -> None:
    columns = ("reference", "way", "pairs/s", "useful tokens/s", "no padding", "ratio", "of it less padding")
    table = Table(*columns)
    for row in results["rows"]:
        for name, way in row["ways"].items():
            cells = [f"{way['pairs']:.1f} ±{way['spread'] / 2:.0%}", f"{way['tokens']:,.0f}"]
            is_best = way is row["llmscale"]
            ratios = [f"{row['ratio']:.2f}", f"{row['of_padding']:.2f}"] if is_best else []
            table.add_row(row["reference"], name, *cells, f"{useful(way):.0%}", *ratios)
    Console(width=120).print(table)
    print(
        "{count} pairs, {source}: {mean_prompt:.0f} tokens a prompt, {mean_answer:.0f} an answer".format(
            **results["pairs"]
        )
    )
    print(
        "load of the machine: {load_before:.1f} before, {load_after:.1f} after".format(**results["machine"])
    )


if __name__ == "__main__":
    main()
