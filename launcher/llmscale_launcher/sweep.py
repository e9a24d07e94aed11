"""A sweep as jobs: one array where the scheduler has arrays, else one job after the other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmscale.config.load import Variant
from llmscale.config.schema import Config
from llmscale_launcher.job import JobRecord, write_whole
from llmscale_launcher.planned import PlannedJob, PlannedTask, PlannedWait

SWEEP_NAME = "sweep.json"


def plan_sweep(base: Config, variants: Sequence[Variant], has_arrays: bool) -> list[PlannedJob]:
    """The jobs of a sweep. Those that are no array wait for one another, so that never more than
    `cluster.max_parallel` run at once; a run that fails does not keep the next from starting."""
    if has_arrays:
        tasks = tuple(PlannedTask(variant.config, variant.changes) for variant in variants)
        return [PlannedJob(base, tasks=tasks)]
    width = base.cluster.max_parallel or (1 if base.cluster.kind == "local" else len(variants))
    jobs: list[PlannedJob] = []
    for place, variant in enumerate(variants):
        after = (PlannedWait(jobs[place - width].folder, "ended"),) if place >= width else ()
        jobs.append(PlannedJob(variant.config, after=after))
    return jobs


def write_sweep(base: Config, variants: Sequence[Variant], records: Mapping[Path, JobRecord]) -> Path:
    """Write `sweep.json` to the folder of the sweep: which run tries what, as which job."""
    folder = base.run_folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        {
            "run": str(run := variant.config.run_folder.absolute()),
            "changes": variant.changes,
            "job": records[run].key,
        }
        for variant in variants
    ]
    write_whole(folder / SWEEP_NAME, json.dumps({"name": base.run.name, "runs": runs}, indent=1) + "\n")
    return folder / SWEEP_NAME
