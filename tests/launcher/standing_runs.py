"""Run folders as they lie there at some moment, without anything that runs."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmscale_launcher.job import JobRecord, write_job

from llmscale.config.load import write_resolved
from llmscale.config.schema import Config

EventLine = str | tuple[str, dict[str, Any]]
"""Kind of an event, or kind and details; all are of step 7."""


def make_run(
    root: Path,
    name: str = "run",
    events: Sequence[EventLine] = (),
    step: int = 0,
    job: JobRecord | None = None,
    planned: int | None = None,
    **train: Any,
) -> Path:
    """A folder with these events, and metrics up to `step` that are newer than the events.

    Args:
        planned: steps of the whole run, as the ranks say; None: as those of before, they do not.
    """
    folder = root / name
    folder.mkdir(parents=True)
    task = "sft" if "epochs" in train else "pretrain"
    sections = {"run": {"name": name, "root": root}, "train": {"steps": 100, **train}}
    config = Config.model_validate({"task": task, **sections})
    write_resolved(config, folder / "config.yaml")
    now = time.time()
    with (folder / "events.jsonl").open("w") as file:
        for place, line in enumerate(events):
            kind, details = (line, {}) if isinstance(line, str) else line
            when = now - 10 + 0.01 * place
            file.write(json.dumps({"event": kind, "time": when, "step": 7, **details}) + "\n")
    if step:
        speed = {"loss": 2.5, "step_seconds": 0.5, "tokens_per_second": 4000.0}
        speed |= {} if planned is None else {"steps": planned}
        lines = [json.dumps({"step": number, **speed}) + "\n" for number in range(1, step + 1)]
        (folder / "metrics.jsonl").write_text("".join(lines))
    if job is not None:
        write_job(folder, job)
    return folder


def slurm_job(id: str, index: int | None = None, depends_on: Sequence[str] = ()) -> JobRecord:
    return JobRecord("slurm", id, index, 1.8e9, depends_on=list(depends_on))


def commit(folder: Path, step: int) -> None:
    """A checkpoint as far as a listing looks."""
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMITTED").touch()
