"""Runs that are submitted to a Ray of tests, seen from outside."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml
from llmscale_launcher.ray.fence import VARIABLE
from llmscale_launcher.ray.jobs import RayJob

from tests.cluster.ray_cluster import RayCluster
from tests.cluster.waiting import wait_until
from tests.distributed.trainings import Place, Run

T = TypeVar("T")

STEPS = 60
START_SECONDS = 120
"""From submitting to the first step, on a machine with other things to do."""


@dataclass(frozen=True)
class RayPlace:
    """A folder with a corpus and a config whose `cluster.kind` is ray."""

    place: Place
    variables: dict[str, str]
    """Environment of the commands, without the caller's own for Ray."""

    @classmethod
    def make(cls, folder: Path, ray: dict[str, Any], variables: dict[str, str]) -> "RayPlace":
        place = Place.make(folder)
        sections = yaml.safe_load(place.config.read_text())
        sections["train"]["steps"] = STEPS
        sections["cluster"] = {
            "kind": "ray",
            "ray": ray,
            "nodes": 2,
            "cpus_per_process": 1,
            "threads": 1,
            "preflight": False,
            "node_lost_seconds": 4,
        }
        (folder / "ray.yaml").write_text(yaml.safe_dump(sections))
        return cls(place, variables)

    @classmethod
    def on(cls, cluster: RayCluster, folder: Path) -> "RayPlace":
        return cls.make(folder, {"address": cluster.address}, cluster.variables)

    def llmscale(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command as a user types it, anywhere."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-m", "llmscale", *arguments],
            env={**own, **self.variables},
            cwd=self.place.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def submit(self, name: str, *overrides: str) -> "RaySubmitted":
        self.llmscale("submit", "ray.yaml", f"run.name={name}", *overrides)
        return RaySubmitted(self.place.run(name))


@dataclass(frozen=True)
class RaySubmitted:
    """A run, its job and its processes."""

    run: Run

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.run.folder / "job.json").read_text())

    def job(self, cluster: RayCluster) -> RayJob:
        found = cluster.server.job(self.record["id"])
        assert found is not None
        return found

    def rank(self, rank: int) -> psutil.Process:
        """The newest process of a rank."""
        log = (self.run.folder / "logs" / f"rank-{rank}.log").read_text()
        return psutil.Process(int(re.findall(rf"^--- rank {rank} pid (\d+) ", log, re.MULTILINE)[-1]))

    def driver(self) -> psutil.Process:
        """The driver of the attempt that runs now."""
        return self._process("ray-attempt")

    def entrypoint(self) -> psutil.Process:
        """What Ray started for the job."""
        return self._process("ray-driver")

    def agents_and_ranks(self) -> list[int]:
        """Process ids of all that agents of this run have started and that still lives."""
        mark = f"{self.run.folder}#"
        return [
            process.pid for process in psutil.process_iter() if _variable(process, VARIABLE).startswith(mark)
        ]

    def wait_for_commit(self, step: int, seconds: float = START_SECONDS) -> None:
        self.wait_until(lambda: self.run.committed_steps()[-1:] >= [step], f"step {step} is saved", seconds)

    def wait_for_event(self, kind: str, count: int = 1, seconds: float = START_SECONDS) -> Any:
        """The newest event of a kind, once there are `count`."""

        def found() -> Any:
            events = self.run.events(kind)
            return events[-1] if len(events) >= count else None

        return self.wait_until(found, f"{count} events {kind!r}", seconds)

    def finish(self, cluster: RayCluster, seconds: float = 180) -> None:
        """Until the job is over, well."""
        assert self.end(cluster, seconds) == ("SUCCEEDED", 0), self.story()
        assert len(self.run.events("finished")) == 1

    def end(self, cluster: RayCluster, seconds: float = 180) -> tuple[str, int | None]:
        """Status and exit code of the job, once it is over and nothing of it is left."""
        job = self.wait_until(
            lambda: found if (found := self.job(cluster)).is_over else None, "the job is over", seconds
        )
        self.wait_until(lambda: not self.agents_and_ranks(), "nothing is left of it", 30)
        return job.status, job.exit_code

    def wait_until(self, condition: Callable[[], T], what: str, seconds: float) -> T:
        try:
            return wait_until(condition, f"{what}, run {self.run.folder}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def story(self) -> str:
        """Events and logs, for messages of failed tests."""
        folder = self.run.folder
        paths = [folder / "events.jsonl", *sorted((folder / "logs").glob("*.log"))]
        texts = [(path, path.read_text(errors="replace") if path.exists() else "missing") for path in paths]
        return "\n".join(f"--- {path}\n{text[-3000:]}" for path, text in texts)

    def _process(self, command: str) -> psutil.Process:
        return next(
            process
            for process in psutil.process_iter()
            if _is_command(process, ["llmscale", "cluster", command, str(self.run.folder)])
        )


def _is_command(process: psutil.Process, words: list[str]) -> bool:
    try:
        arguments = process.cmdline()
    except psutil.Error:
        return False
    return arguments[1:2] == ["-m"] and arguments[2 : 2 + len(words)] == words


def _variable(process: psutil.Process, name: str) -> str:
    try:
        return process.environ().get(name, "")
    except psutil.Error:
        return ""
