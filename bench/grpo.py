"""GRPO beside TRL's `GRPOTrainer`: the same model, prompts and lengths, in one run.

python -m bench.grpo [--quick] [--rounds N] [--threads N] [--busy] [--beta B] [--output FOLDER]

A step is: answers are written to some prompts, several to each, a function rewards them, and the model learns
from them in one optimizer step. llmscale is measured as a user runs it: `llmscale train` starts a Ray, a
driver and its workers, one with all threads or one a thread, and what they say to each other counts. TRL is
one process with all threads. Random weights of llama_6m; nothing ends an answer early but by a rare chance.
Each way of cutting a step takes turns, in fresh processes; the quickest of each counts.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import peers
from bench.grpo_workload import GrpoWorkload, prepare
from bench.picture import draw_bars
from bench.rounds import Contender, machine, median_and_spread, run_rounds, write_json

PRESET = "llama_6m"
ANSWERS_A_STEP = 64
ANSWERS_AT_ONCE = (8, 32)
"""Of TRL, padded to the longest of them."""
ROWS_AT_ONCE = ((128, 8), (576, 2))
"""Of llmscale: tokens of a row, in which answers stand end to end, and rows. All answers to a prompt fit into
576 tokens."""
ROWS_OF_MANY = (576, 1)
"""Of each of several workers, which have fewer answers each."""
NAMES = ("TRL", "llmscale")
SPEEDS = (
    "step_seconds",
    "processor_seconds",
    "rollout_tokens_per_second",
    "tokens_per_second",
    "answer_tokens",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", action="store_true", help="one thread, by the processor's seconds")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the divergence in the loss")
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    workload = GrpoWorkload(
        PRESET,
        "fp32",
        sequences=ANSWERS_A_STEP,
        threads=1 if options.busy else options.threads,
        folder=str((options.output / "grpo").absolute()),
        steps=2 if options.quick else 6,
        beta=options.beta,
    )
    prepare(workload)
    results: dict[str, Any] = {"machine": machine() | {"peers": peers.described()}}
    results |= {"threads": workload.threads, "beta": workload.beta}
    results["seconds"] = "processor_seconds" if options.busy else "step_seconds"
    results |= compare(workload, 1 if options.quick else options.rounds, results["seconds"])
    results["machine"]["load_after"] = os.getloadavg()[0]
    write_json(options.output / "grpo.json", results)
    report(results)
    draw_bars(
        options.output / "grpo.png",
        f"GRPO of {PRESET}, fp32, {workload.threads} threads: TRL = 100 %",
        ["whole steps", "tokens of a rollout"],
        {name: list(shares(results, name)) for name in NAMES},
    )


def compare(workload: GrpoWorkload, rounds: int, seconds: str) -> dict[str, Any]:
    """
    Args:
        seconds: by which of them ways are the quickest.
    """
    contenders = {
        "TRL": [
            Contender(
                f"TRL, {answers} at once",
                "bench.grpo_trl",
                replace(workload, micro_batch_size=answers),
                peers.interpreter(),
            )
            for answers in ANSWERS_AT_ONCE
        ],
        "llmscale": [
            Contender(
                f"llmscale, {rows} rows of {length}",
                "bench.grpo_llmscale",
                replace(workload, sequence_length=length, micro_batch_size=rows),
            )
            for length, rows in ROWS_AT_ONCE
        ],
    }
    if workload.threads > 1:
        length, rows = ROWS_OF_MANY
        many = replace(workload, sequence_length=length, micro_batch_size=rows, workers=workload.threads)
        name = f"llmscale, {workload.threads} workers, {rows} row of {length}"
        contenders["llmscale"].append(Contender(name, "bench.grpo_llmscale", many))
    found = run_rounds([one for several in contenders.values() for one in several], rounds)
    ways = {name: summary(rounds_of) for name, rounds_of in found.items()}
    best = {
        name: min((ways[one.name] for one in several), key=lambda way: way[seconds])
        for name, several in contenders.items()
    }
    return {"ways": ways, **best}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    speeds = {name: median_and_spread([result[name] for result in results]) for name in SPEEDS}
    medians = {name: speed for name, (speed, _) in speeds.items()}
    return {**medians, "spread": speeds["step_seconds"][1], "rounds": results}


def shares(results: dict[str, Any], name: str) -> tuple[float, float]:
    """Speed of whole steps and of rollouts, of TRL's."""
    one, trl = results[name], results["TRL"]
    rollout = "rollout_tokens_per_second"
    seconds = results["seconds"]
    return trl[seconds] / one[seconds], one[rollout] / trl[rollout]


def report(results: dict[str, Any]) -> None:
    columns = ("way", "seconds a step", "of processors", "rollout tokens/s", "ratio, steps", "ratio, rollout")
    table = Table(*columns)
    for name, way in results["ways"].items():
        is_best = way is results["llmscale"]
        ratios = [f"{share:.2f}" for share in shares(results, "llmscale")] if is_best else []
        seconds = f"{way['step_seconds']:.2f} ±{way['spread'] / 2:.0%}"
        processor = f"{way['processor_seconds']:.2f}"
        table.add_row(name, seconds, processor, f"{way['rollout_tokens_per_second']:,.0f}", *ratios)
    Console(width=110).print(table)
    print(
        "load of the machine: {load_before:.1f} before, {load_after:.1f} after".format(**results["machine"])
    )


if __name__ == "__main__":
    main()
