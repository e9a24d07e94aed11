"""Tokens a second of generation with a key-value cache, beside what reading weights and cache takes.

Random weights in bf16, drawn tokens, prompts of one length. Steps that write one token for each row count,
as the host sees them; that of the prompts and the first few after it do not. A step's floor is the bytes of
weights and cache that it has to read, at the rate of a large copy.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.gpu.ceilings import Ceilings
from bench.gpu.floors import decoding_step
from bench.picture import draw_bars
from bench.rounds import median_and_spread
from bench.tuning import config_of
from bench.workload import Workload
from llmscale.engine.generate import Generator
from llmscale.engine.sampling import SamplingOptions
from llmscale.model.build import build_model
from llmscale.parallel.distributed import connect, disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World

WARM_UP_STEPS = 8


@dataclass(frozen=True)
class Task:
    presets: tuple[str, ...] = ("llama3_1b", "llama3_3b")
    rows: tuple[int, ...] = (1, 16, 64)
    prompt: int = 256
    """Tokens."""
    written: int = 256
    """Tokens a row."""

    @property
    def tokens_behind(self) -> float:
        """That a token which counts sees in the mean, itself included. The prompts' step writes the first."""
        return self.prompt + (WARM_UP_STEPS + 1 + self.written - 1) / 2


QUICK = Task(("llama_6m",), (1, 4), prompt=16, written=24)


@dataclass
class Steps:
    """When steps ended."""

    ends: list[float] = field(default_factory=list)

    def __call__(self, tokens: list[int | None]) -> None:
        if None in tokens:
            raise RuntimeError("rows that begin later than others: a step is not one of all rows")
        self.ends.append(time.perf_counter())

    @property
    def mean_seconds(self) -> float:
        counted = self.ends[WARM_UP_STEPS:]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def measured_decoding(task: Task, ceilings: Ceilings, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each model and number of rows."""
    world = World(Layout(), connect(RankEnvironment()))
    try:
        for preset in task.presets:
            workload = Workload(preset, "bf16", 1, task.prompt + task.written, micro_batch_size=1)
            generator = build(workload, world)
            for rows in task.rows:
                yield measured(generator, workload, task, rows, ceilings, rounds)
    finally:
        disconnect()


def build(workload: Workload, world: World) -> Generator:
    config = config_of(workload, workload.sequences)
    with world.active():
        return Generator(build_model(config.model, config.train, workload.vocabulary_size, world), world)


def measured(
    generator: Generator, workload: Workload, task: Task, rows: int, ceilings: Ceilings, rounds: int
) -> dict[str, Any]:
    step_seconds(generator, workload, task, rows)  # reserves memory, compiles kernels
    found = [step_seconds(generator, workload, task, rows) for _ in range(rounds)]
    seconds, spread = median_and_spread(found)
    floor = decoding_step(workload.model, workload.vocabulary_size, rows, task.tokens_behind)
    return {
        "preset": workload.preset,
        "rows": rows,
        "tokens_per_second": rows / seconds,
        "spread": spread,
        "step_seconds": seconds,
        "floor_bytes": floor.moved_bytes,
        "share": floor.seconds(ceilings) / seconds,
    }


def step_seconds(generator: Generator, workload: Workload, task: Task, rows: int) -> float:
    numbers = torch.Generator().manual_seed(1)
    prompts = torch.randint(workload.vocabulary_size, (rows, task.prompt), generator=numbers).tolist()
    steps = Steps()
    generator.generate(prompts, SamplingOptions(max_new_tokens=task.written), steps)
    return steps.mean_seconds


def report(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "rows", "tokens/s", "a step", "MB that it reads", "share of the copy's bandwidth")
    for row in rows:
        table.add_row(
            row["preset"],
            str(row["rows"]),
            f"{row['tokens_per_second']:,.0f} ±{row['spread'] / 2:.0%}",
            f"{row['step_seconds'] * 1e3:.2f} ms",
            f"{row['floor_bytes'] / 1e6:,.0f}",
            f"{row['share']:.1%}",
        )
    Console(width=150).print(table)


def draw(path: Path, device: str, rows: list[dict[str, Any]]) -> None:
    draw_bars(
        path,
        f"Generation on {device}: share of the copy's bandwidth",
        [f"{row['preset']}\n{row['rows']} rows" for row in rows],
        {"llmscale": [row["share"] for row in rows]},
    )
