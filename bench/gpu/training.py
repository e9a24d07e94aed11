"""Model FLOP utilisation (MFU) of training on one device: llmscale's engine, transformers in a plain loop.

bf16, sequences of 4,096 tokens, no recomputation. llmscale keeps weights in bf16, and in float32 a gradient,
the master weights and both moments: 18 bytes a parameter, 22 GB for Llama 3.2 1B and 58 GB for 3B, which
fit the 80 GB of one GPU with room for activations. The plain loop has all four in bf16: 8 bytes.

A step's useful FLOPs (`llmscale/plan/flops.py`: no recomputation, causal attention at what it needs) over its
time are held against the measured peak of matrix products and against that of the data sheet. Each contender
runs in a fresh process; the first round tries how many sequences at a time are quickest, up to where memory
ends, and further rounds stay with those.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.gpu.ceilings import Ceilings
from bench.picture import draw_bars
from bench.rounds import Contender, median_and_spread, run
from bench.tuning import config_of
from bench.workload import Workload
from llmscale.plan.flops import flops_per_token
from llmscale.plan.memory import rank_memory

PRESETS = ("llama3_1b", "llama3_3b")
MICRO_BATCH_SIZES = (1, 2, 4)
PROGRAMS = {"transformers": "bench.transformers_loop", "llmscale": "bench.llmscale_loop"}
OUT_OF_MEMORY = "out of memory"
"""As torch says it, whatever the device."""


def workloads(quick: bool, threads: int) -> list[list[Workload]]:
    """Of each model, in the order of sequences at a time. 32,768 tokens are a step: updating the weights is a
    small part of it."""
    if quick:
        small = Workload("llama_6m", "bf16", 2, 64, threads, seconds=0.1, micro_batch_size=1)
        return [[small]]
    return [
        [
            Workload(preset, "bf16", 8, 4096, threads, 15.0, micro_batch_size=rows)
            for rows in MICRO_BATCH_SIZES
        ]
        for preset in PRESETS
    ]


def measured_models(
    models: list[list[Workload]], ceilings: Ceilings, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each model."""
    for sizes in models:
        first = sizes[0]
        flops = flops_per_token(first.model, first.sequence_length, first.vocabulary_size)
        trials = {name: tried_sizes(name, sizes) for name in PROGRAMS}
        for _ in range(rounds - 1):
            for trial in trials.values():
                trial.run_again()
        yield {
            "preset": first.preset,
            "sequence_length": first.sequence_length,
            "sequences": first.sequences,
            "flops_per_token": flops,
            "planned_bytes_of_llmscale": {size.micro_batch_size: planned_bytes(size) for size in sizes},
            **{name: utilisation(trial, flops, ceilings) for name, trial in trials.items()},
        }


@dataclass
class Trial:
    """What was measured of a contender."""

    name: str
    first_round: list[tuple[Workload, dict[str, Any]]] = field(default_factory=list)
    """What was tried."""
    failure: str | None = None
    """Why no more was."""
    further: list[dict[str, Any]] = field(default_factory=list)
    """Further rounds of the quickest."""

    @property
    def best(self) -> tuple[Workload, dict[str, Any]]:
        return max(self.first_round, key=lambda pair: pair[1]["tokens_per_second"])

    def run_again(self) -> None:
        if self.first_round:
            self.further.append(run_once(self.name, self.best[0]))


def tried_sizes(name: str, sizes: list[Workload]) -> Trial:
    """One run of each size, up to where memory ends."""
    trial = Trial(name)
    for workload in sizes:
        try:
            trial.first_round.append((workload, run_once(name, workload)))
        except RuntimeError as error:
            # A contender that fails otherwise must not cost what the other is measured for.
            trial.failure = OUT_OF_MEMORY if OUT_OF_MEMORY in str(error) else str(error)
            break
    return trial


def utilisation(trial: Trial, flops: float, ceilings: Ceilings) -> dict[str, Any]:
    """
    Args:
        flops: useful ones of a token.
    """
    if not trial.first_round:
        return {"failure": trial.failure}
    workload, first = trial.best
    found = [first, *trial.further]
    speed, spread = median_and_spread([one["tokens_per_second"] for one in found])
    datasheet = ceilings.datasheet_flops_per_second
    return {
        "tokens_per_second": speed,
        "spread": spread,
        "micro_batch_size": workload.micro_batch_size,
        "peak_memory_bytes": first["peak_memory_bytes"],
        "utilisation_of_measured_peak": speed * flops / ceilings.flops_per_second,
        "utilisation_of_datasheet_peak": speed * flops / datasheet if datasheet else None,
        "first_round": {size.micro_batch_size: result for size, result in trial.first_round},
        "failure": trial.failure,
        "rounds": found,
    }


def planned_bytes(workload: Workload) -> int:
    """What `llmscale plan` expects llmscale to need."""
    return rank_memory(config_of(workload, workload.sequences), workload.vocabulary_size, stage=0).total


def run_once(name: str, workload: Workload) -> dict[str, Any]:
    result = run(Contender(name, PROGRAMS[name], workload))
    what = f"{workload.preset}, {workload.micro_batch_size} at a time, {name}"
    print(f"{what:<60} {result['tokens_per_second']:,.0f} tokens/s", flush=True)
    return result


def report(rows: list[dict[str, Any]]) -> None:
    of_peaks = ("of the measured peak", "of the data sheet's")
    table = Table("model", "", "tokens/s", "at a time", *of_peaks, "peak memory", "planned")
    for row in rows:
        for name in PROGRAMS:
            table.add_row(row["preset"], name, *cells(row[name], row["planned_bytes_of_llmscale"], name))
    Console(width=150).print(table)


def cells(found: dict[str, Any], planned: dict[int, int], name: str) -> list[str]:
    if "tokens_per_second" not in found:
        return [found["failure"].strip().splitlines()[-1]]
    datasheet, memory = found["utilisation_of_datasheet_peak"], found["peak_memory_bytes"]
    return [
        f"{found['tokens_per_second']:,.0f} ±{found['spread'] / 2:.0%}",
        str(found["micro_batch_size"]),
        f"{found['utilisation_of_measured_peak']:.1%}",
        "unknown" if datasheet is None else f"{datasheet:.1%}",
        "—" if memory is None else f"{memory / 1e9:.1f} GB",
        f"{planned[found['micro_batch_size']] / 1e9:.1f} GB" if name == "llmscale" else "",
    ]


def draw(path: Path, device: str, rows: list[dict[str, Any]]) -> None:
    draw_bars(
        path,
        f"Training on {device}: share of the measured peak of products",
        [row["preset"] for row in rows],
        {
            name: [row[name].get("utilisation_of_measured_peak", 0.0) for row in rows]
            for name in reversed(PROGRAMS)
        },
    )
