"""Runs that are submitted to a test cluster: a tiny model on a made-up corpus, seen from outside.

The numbers of such runs are compared with those of runs of the same model on this machine that nothing
disturbed (`tests.distributed.trainings`).
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.slurm.cluster import SlurmCluster
from tests.cluster.waiting import wait_until
from tests.distributed.trainings import Place, Run

START_SECONDS = 120
"""From submitting to the first step, on a machine with other things to do."""

DP2 = ("cluster.nodes=2", "cluster.processes_per_node=1")
"""Two nodes with a rank each; sums of two numbers do not depend on their order, so results are exact."""

SLURM: dict[str, Any] = {
    "kind": "slurm",
    "nodes": 1,
    "processes_per_node": 1,
    "cpus_per_process": 1,
    "preflight": False,
    "threads": 1,
    "max_restarts": 3,
}
STEPS = 60
"""Of a run that something is to happen to."""


@dataclass(frozen=True)
class SlurmPlace:
    """A folder with a corpus and a config whose `cluster.kind` is slurm."""

    place: Place
    cluster: SlurmCluster

    @classmethod
    def make(cls, folder: Path, cluster: SlurmCluster, **cluster_section: Any) -> "SlurmPlace":
        place = Place.make(folder)
        sections = yaml.safe_load(place.config.read_text())
        sections["cluster"] = SLURM | cluster_section
        sections["train"]["steps"] = STEPS
        (folder / "slurm.yaml").write_text(yaml.safe_dump(sections))
        return cls(place, cluster)

    @property
    def config(self) -> Path:
        return self.place.folder / "slurm.yaml"

    def llmscale(self, *arguments: str, check: bool = True, seconds: float = 60) -> str:
        """What a command of llmscale writes, typed on the login node."""
        return self.cluster.run(sys.executable, "-m", "llmscale", *arguments, check=check, seconds=seconds)

    @property
    def root(self) -> Path:
        return self.place.folder / "runs"

    def cancel(self, name: str) -> str:
        """`llmscale cancel`, which waits until the run has saved and left."""
        return self.llmscale("cancel", name, "--root", str(self.root))

    def submit(self, name: str, *overrides: str) -> "Submitted":
        self.llmscale("submit", str(self.config), f"run.name={name}", *overrides)
        return self.submitted(name)

    def submitted(self, name: str) -> "Submitted":
        """A run that was submitted, also as a part of a sweep or a pipeline."""
        return Submitted(self.place.run(name), self.cluster)


@dataclass(frozen=True)
class Submitted:
    """A run and its job."""

    run: Run
    cluster: SlurmCluster

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.run.folder / "job.json").read_text())

    @property
    def job(self) -> int:
        """Id of the job; of a task of an array, once it has begun, the task's own."""
        number, index = int(self.record["id"]), self.record["array_index"]
        return number if index is None else self.cluster.array_task(number, index)

    def job_when_begun(self, seconds: float = 120) -> int:
        """Id of the job of a task of an array."""

        def found() -> int | None:
            try:
                return self.job
            except StopIteration:
                return None

        return wait_until(found, f"the task of {self.run.folder} has begun", seconds)

    def rank_pid(self, rank: int) -> int:
        """The newest process of a rank, as its node numbers it."""
        starts = re.findall(rf"^--- rank {rank} pid (\d+) ", self.rank_log(rank), re.MULTILINE)
        return int(starts[-1])

    def rank_log(self, rank: int) -> str:
        return (self.run.folder / "logs" / f"rank-{rank}.log").read_text()

    def wait_for_step(self, step: int, seconds: float = START_SECONDS) -> None:
        """Until `step` stands in the metrics."""
        self.wait_until(lambda: self.run.last_step() >= step, f"step {step} is reached", seconds)

    def wait_for_commit(self, step: int, seconds: float = START_SECONDS) -> None:
        """Until a checkpoint of `step` or later is committed."""
        self.wait_until(
            lambda: (self.run.committed_steps() or [0])[-1] >= step, f"step {step} is committed", seconds
        )

    def wait_for_event(self, kind: str, count: int = 1, seconds: float = START_SECONDS) -> Any:
        """The newest event of a kind, once there are `count`."""

        def found() -> Any:
            events = self.run.events(kind)
            return events[-1] if len(events) >= count else None

        return self.wait_until(found, f"{count} events {kind!r}", seconds)

    def wait_for_restart(self, restarts: int, seconds: float = 60) -> None:
        """Until the job runs again, for the `restarts`-th time."""
        self.cluster.wait_for_restart(self.job, restarts, seconds)

    def finish(self, seconds: float = 180) -> None:
        """Until the job is done, as squeue, sacct and the run's own events say."""
        self.end("COMPLETED", seconds)
        assert len(self.run.events("finished")) == 1

    def end(self, state: str, seconds: float = 180) -> None:
        """Until the job has ended in `state`, as squeue and sacct say."""
        try:
            self.cluster.wait_for(self.job, state, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None
        self.cluster.wait_for_accounts(self.job, state)

    def wait_until(self, condition: Any, what: str, seconds: float) -> Any:
        try:
            return wait_until(condition, f"{what}, run {self.run.folder}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def story(self) -> str:
        """Events and logs, for messages of failed tests."""
        parts = [self.cluster.describe(self.job)]
        for path in [self.run.folder / "events.jsonl", *sorted((self.run.folder / "logs").glob("*.log"))]:
            text = path.read_text(errors="replace") if path.exists() else "missing"
            parts.append(f"--- {path}\n{text[-4000:]}")
        return "\n".join(parts)
