"""`cluster.kind=ray`: runs as jobs of a Ray, through its job server.

A Ray inside a SLURM allocation is a job of SLURM, which starts a Ray of its own: see `slurm/ray.sbatch`.
"""

import importlib.metadata
import importlib.util
import os
import re
import secrets
import shlex
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale_launcher.backends.base import JobRequest, SubmitError
from llmscale_launcher.backends.slurm import SlurmBackend
from llmscale_launcher.batch_script import ray_script
from llmscale_launcher.job import JobRecord, JobState, write_whole
from llmscale_launcher.ray.jobs import STOP_VARIABLES, JobServer, RayJob, user_token
from llmscale_launcher.ray.local import find_local_ray, local_ray
from llmscale_launcher.ray.placement import Machine, agents_of, cpus_in_all

SCRIPT_NAME = "job.sh"
MOST_QUERIES = 16
"""To different Rays at the same time."""
LOG_NAME = "logs/job.log"


class RayBackend:
    has_arrays = False

    def check(self, config: Config) -> list[Problem]:
        problems: list[Problem] = []
        if importlib.util.find_spec("ray") is None:
            message = "needs Ray, which is not installed: pip install 'llmscale[ray]'"
            problems.append(Problem("cluster.kind", "ray", message))
        if config.cluster.ray.address is not None:
            return problems + _check_address(config.cluster.ray.address)
        if config.cluster.container and config.cluster.ray.within == "local":
            message = "agents run inside Ray: start Ray itself in the container, and name its address"
            problems.append(Problem("cluster.container", config.cluster.container.image, message))
        if config.cluster.ray.within == "slurm":
            return problems + SlurmBackend().check(config)
        ask = agents_of(config)
        if ask.nodes > 1 and ask.strategy == "STRICT_SPREAD":
            message = "a local Ray is one machine: set cluster.ray.placement=pack, or cluster.ray.address"
            problems.append(Problem("cluster.nodes", ask.nodes, message))
        return problems

    def script(self, request: JobRequest) -> str:
        if _in_slurm(request.config):
            return ray_script(request)
        options = [f"--{earlier.until}={earlier.folder}" for earlier in request.after]
        python = request.config.cluster.python or sys.executable
        command = [python, "-m", "llmscale", "cluster", "ray-driver", str(request.folder), *options]
        environment = _code_variables(request) | request.config.cluster.environment
        log = shlex.quote(str(request.folder / LOG_NAME))
        return "\n".join(
            [
                "#!/bin/bash",
                "# Made by `llmscale submit`: the entrypoint of a Ray job, which places the agents.",
                "ulimit -c 0",
                # Ray asks every process of a job to stop; the log has to outlive those that write to it.
                f"exec > >(trap '' TERM INT; exec tee -a {log}) 2>&1",
                *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
                f"cd {shlex.quote(str(request.directory))} || exit 1",
                f"exec {shlex.join(command)}",
                "",
            ]
        )

    def submit(self, request: JobRequest) -> JobRecord:
        if _in_slurm(request.config):
            return SlurmBackend().submit(request)
        script = request.folder / SCRIPT_NAME
        write_whole(script, self.script(request), 0o700)
        ray = request.config.cluster.ray
        if ray.address is not None:
            return _submit(JobServer(ray.address, user_token()), request, host=None)
        # CPUs of a local Ray are a count, not cores: a laptop may run more ranks than it has cores.
        asked = (cpus_in_all(config) for config in (request.config, *request.beside))
        cpus = max(os.cpu_count() or 1, *asked)
        with local_ray(cpus, ray.dashboard_host) as found:
            return _submit(found.server(), request, host=socket.gethostname())

    def states(self, records: Sequence[JobRecord]) -> dict[str, JobState]:
        by_place: dict[RayPlace, list[JobRecord]] = defaultdict(list)
        for record in records:
            by_place[_place(record)].append(record)
        # At once: one that does not answer must not keep the others waiting.
        with ThreadPoolExecutor(MOST_QUERIES) as pool:
            found = pool.map(_states, by_place.keys(), by_place.values())
        return {key: state for states in found for key, state in states.items()}

    def cancel(self, record: JobRecord) -> None:
        server = _place(record).server()
        if server is not None:
            server.stop(record.id)

    def kill(self, record: JobRecord) -> None:
        """Nothing more than `cancel`: Ray itself kills what has not left, see `STOP_VARIABLES`."""
        self.cancel(record)


@dataclass(frozen=True)
class RayPlace:
    """Where a job was handed over."""

    address: str
    """Of the job server."""
    host: str | None
    """Machine whose local Ray it is; None for a Ray that others look after."""

    def server(self) -> JobServer | None:
        """The job server; None where that was a local Ray which has ended.

        Raises:
            SubmitError: the local Ray of another machine, which cannot be reached from here.
        """
        if self.host is None:
            return JobServer(self.address, user_token())
        if self.host != socket.gethostname():
            raise SubmitError(f"it runs on the local Ray of {self.host}, which only {self.host} can reach")
        found = find_local_ray()
        return found.server() if found is not None and found.address == self.address else None


def _place(record: JobRecord) -> RayPlace:
    place = record.cluster or {}
    return RayPlace(place["address"], place["host"])


def running_machines(config: Config) -> list[Machine] | None:
    """Machines of the Ray that the run would go to; None where it is started for it.

    Raises:
        SubmitError: it does not answer, or does not let us in.
    """
    ray = config.cluster.ray
    if ray.address is not None:
        return JobServer(ray.address, user_token()).machines()
    found = None if _in_slurm(config) else find_local_ray()
    return None if found is None else found.server().machines()


def _in_slurm(config: Config) -> bool:
    return config.cluster.ray.address is None and config.cluster.ray.within == "slurm"


def _code_variables(request: JobRequest) -> dict[str, str]:
    """Has Python take the copy of the code, also where the job works in a checkout."""
    return {"PYTHONPATH": str(request.code), "PYTHONSAFEPATH": "1"}


def _submit(server: JobServer, request: JobRequest, host: str | None) -> JobRecord:
    id = f"{request.folder.name}-{secrets.token_hex(4)}"
    server.submit(
        id,
        shlex.join(["/bin/bash", str(request.folder / SCRIPT_NAME)]),
        variables={**_code_variables(request), **STOP_VARIABLES},
        metadata={"run": str(request.folder)},
    )
    return JobRecord(
        kind="ray",
        id=id,
        array_index=None,
        submitted=time.time(),
        cluster={"address": server.address, "host": host},
        depends_on=[str(earlier.folder) for earlier in request.after],
    )


def _states(place: RayPlace, records: Sequence[JobRecord]) -> dict[str, JobState]:
    try:
        server = place.server()
        jobs = server.jobs() if server is not None else {}
    except SubmitError as error:
        return {record.key: JobState("unknown", str(error)) for record in records}
    return {record.key: _state(jobs.get(record.id)) for record in records}


def _state(job: RayJob | None) -> JobState:
    if job is None:
        return JobState("ended", "its Ray has ended, or was started anew")
    if job.is_over:
        return JobState("ended", job.status.lower(), exit_code=job.exit_code)
    return JobState("pending" if job.status == "PENDING" else "running", job.message or None)


def _check_address(address: str) -> list[Problem]:
    """Whether a Ray of our version answers there and lets us in."""
    if not re.match(r"https?://[^/]+", address):
        message = "must be the address of its job server (the dashboard's), such as http://head:8265"
        return [Problem("cluster.ray.address", address, message)]
    try:
        there = JobServer(address, user_token()).version()
        here = importlib.metadata.version("ray")
    except SubmitError as error:
        return [Problem("cluster.ray.address", address, str(error))]
    except importlib.metadata.PackageNotFoundError:
        return []
    if there != here:
        message = f"runs Ray {there}, and here is Ray {here}: drivers need the version of their Ray"
        return [Problem("cluster.ray.address", address, message)]
    return []
