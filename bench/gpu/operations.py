"""How close operations come to what memory and matrix units allow, and how they stand beside others'."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.gpu.ceilings import Ceilings
from bench.gpu.clock import seconds_in_rounds, warm_up
from bench.gpu.contenders import HAS_LIGER, LIGER, LLMSCALE, WAYS, Operation, Sizes, operations
from bench.picture import draw_bars
from llmscale.config.presets import load_preset

TARGET = 0.85
"""Share of the copy's bandwidth that operations on memory should reach."""
TURNS, QUICK_TURNS = 20, 2


def usual_sizes(quick: bool) -> Sizes:
    """Of Llama 3.2 1B with 4 rows of 4,096 tokens; quickly, of the smallest model."""
    if quick:
        return Sizes.of(load_preset("llama_6m"), rows=2, sequence=64, scored=64)
    return Sizes.of(load_preset("llama3_1b"), rows=4, sequence=4096, scored=4096)


def measured_operations(
    sizes: Sizes, ceilings: Ceilings, rounds: int, turns: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for each operation."""
    for operation in operations(sizes, device):
        yield measured(operation, ceilings, rounds, turns, device)


def measured(
    operation: Operation, ceilings: Ceilings, rounds: int, turns: int, device: torch.device
) -> dict[str, Any]:
    """Seconds of forward and backward together, and `share`: the floor's seconds to the measured ones."""
    failures: dict[str, str] = {}
    for way, work in operation.ways.items():
        try:
            warm_up(work, device)
        # One who does not work on a device must not cost what the others are measured for.
        except Exception as error:
            failures[way] = f"{type(error).__name__}: {error}"
    works = {way: work for way, work in operation.ways.items() if way not in failures}
    floor = operation.floor
    least = floor.seconds(ceilings)
    return {
        "operation": operation.name,
        "floor_bytes": floor.moved_bytes,
        "floor_flops": floor.flops,
        "floor_seconds": least,
        "is_of_memory": floor.is_of_memory(ceilings),
        "ways": {
            way: {"seconds": seconds, "spread": spread, "share": least / seconds}
            for way, (seconds, spread) in seconds_in_rounds(works, rounds, turns, device).items()
        },
        "failures": failures,
    }


def report(rows: list[dict[str, Any]]) -> None:
    table = Table("forward and backward", "floor", *WAYS, f"share ≥ {TARGET:.0%}")
    for row in rows:
        of = "bytes" if row["is_of_memory"] else "products"
        ours = row["ways"].get(LLMSCALE)
        verdict = ("yes" if ours and ours["share"] >= TARGET else "no") if row["is_of_memory"] else ""
        floor = f"{row['floor_seconds'] * 1e3:.3f} ms of {of}"
        table.add_row(row["operation"], floor, *(cell(row, way) for way in WAYS), verdict)
    Console(width=150).print(table)
    for row in rows:
        for way, failure in row["failures"].items():
            print(f"{row['operation']} by {way} failed: {failure.splitlines()[0]}")


def cell(row: dict[str, Any], way: str) -> str:
    if way in row["failures"]:
        return "failed"
    if way not in row["ways"]:
        return "not installed" if way == LIGER and not HAS_LIGER else "—"
    found = row["ways"][way]
    return f"{found['seconds'] * 1e3:.3f} ms ±{found['spread'] / 2:.0%} ({found['share']:.0%})"


def draw(path: Path, device: str, rows: list[dict[str, Any]]) -> None:
    """Only those who competed."""
    ways = [way for way in WAYS if any(way in row["ways"] for row in rows)]
    draw_bars(
        path,
        f"Forward and backward on {device}: share of what memory, or matrix units, allow",
        [row["operation"].replace(" and ", "\nand ") for row in rows],
        {way: [row["ways"].get(way, {"share": 0.0})["share"] for row in rows] for way in ways},
    )
