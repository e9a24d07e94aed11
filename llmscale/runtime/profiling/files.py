"""The files of a profile in the folder of its run, `profile/steps-10-13-rank-0.json` and its trace beside it.
No torch."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmscale.runtime.profiling.breakdown import Breakdown, Operation

FOLDER = "profile"


def breakdown_path(run_folder: Path, steps: tuple[int, int], rank: int) -> Path:
    return run_folder / FOLDER / f"steps-{steps[0]}-{steps[1]}-rank-{rank}.json"


def trace_path(run_folder: Path, steps: tuple[int, int], rank: int) -> Path:
    """A chrome trace, packed by gzip."""
    return breakdown_path(run_folder, steps, rank).with_suffix(".json.gz")


def write_breakdown(run_folder: Path, found: Breakdown) -> Path:
    path = breakdown_path(run_folder, (found.first, found.last), found.rank)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        json.dump(asdict(found), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def breakdown_of(trace: Path) -> Breakdown:
    """That stands beside a trace."""
    return read_breakdown(trace.with_suffix(""))


def read_breakdown(path: Path) -> Breakdown:
    fields: dict[str, Any] = json.loads(path.read_text())
    for name in ("slowest", "largest"):
        fields[name] = [Operation(**operation) for operation in fields[name]]
    return Breakdown(**fields)


def read_breakdowns(run_folder: Path) -> list[Breakdown]:
    """All of a run, by step and rank."""
    found = [read_breakdown(path) for path in (run_folder / FOLDER).glob("steps-*-rank-*.json")]
    return sorted(found, key=lambda one: (one.first, one.last, one.rank))
