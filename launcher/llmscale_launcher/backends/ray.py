"""`cluster.kind=ray`: runs as jobs of a Ray, through its job server.

A Ray inside a SLURM allocation is a job of SLURM, which starts a Ray of its own: see `slurm/ray.sbatch`.
"""

import importlib.metadata
import importlib.util
import os
import re
import secrets
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale_launcher.backends.base import JobRequest, SubmitError
from llmscale_launcher.backends.slurm import SlurmBackend
from llmscale_launcher.batch_script import ray_script
from llmscale_launcher.job import JobRecord, JobState, write_whole
from llmscale_launcher.ray.jobs import STOP_VARIABLES, JobServer, RayJob, user_token
from llmscale_launcher.ray.local import find_local_ray, local_ray
from llmscale_launcher.ray.placement import ask_of

SCRIPT_NAME = "job.sh"
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
        ask = ask_of(config.cluster)
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
        environment = request.config.cluster.environment
        log = shlex.quote(str(request.folder / LOG_NAME))
        return "\n".join(
            [
                "#!/bin/bash",
                "# Made by `llmscale submit`: the entrypoint of a Ray job, which places the agents.",
                "ulimit -c 0",
                # Ray asks every process of a job to stop; the log has to outlive those that write to it.
                f"exec > >(trap '' TERM INT; exec tee -a {log}) 2>&1",
                f"export PYTHONPATH={shlex.quote(str(request.code))}",
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
            return _submit(JobServer(ray.address, user_token()), request, local=False)
        ask = ask_of(request.config.cluster)
        # CPUs of a local Ray are a count, not cores: a laptop may run more ranks than it has cores.
        cpus = max(os.cpu_count() or 1, ask.cpus * ask.nodes)
        with local_ray(cpus, ray.dashboard_host) as found:
            return _submit(found.server(), request, local=True)

    def states(self, records: Sequence[JobRecord]) -> dict[str, JobState]:
        by_server: dict[tuple[str, bool], list[JobRecord]] = defaultdict(list)
        for record in records:
            place = record.cluster or {}
            by_server[place["address"], place["local"]].append(record)
        states: dict[str, JobState] = {}
        for (address, local), group in by_server.items():
            states |= _states(address, local, group)
        return states

    def cancel(self, record: JobRecord) -> None:
        place = record.cluster or {}
        server = _server(place["address"], place["local"])
        if server is not None:
            server.stop(record.id)

    def kill(self, record: JobRecord) -> None:
        """Nothing more than `cancel`: Ray itself kills what has not left, see `STOP_VARIABLES`."""
        self.cancel(record)


def _in_slurm(config: Config) -> bool:
    return config.cluster.ray.address is None and config.cluster.ray.within == "slurm"


def _submit(server: JobServer, request: JobRequest, local: bool) -> JobRecord:
    id = f"{request.folder.name}-{secrets.token_hex(4)}"
    server.submit(
        id,
        shlex.join(["/bin/bash", str(request.folder / SCRIPT_NAME)]),
        variables={"PYTHONPATH": str(request.code), **STOP_VARIABLES},
        metadata={"run": str(request.folder)},
    )
    return JobRecord(
        kind="ray",
        id=id,
        array_index=None,
        submitted=time.time(),
        cluster={"address": server.address, "local": local},
        depends_on=[str(earlier.folder) for earlier in request.after],
    )


def _server(address: str, local: bool) -> JobServer | None:
    """The job server at `address`; None where that was a local Ray which has ended."""
    if not local:
        return JobServer(address, user_token())
    found = find_local_ray()
    return found.server() if found is not None and found.address == address else None


def _states(address: str, local: bool, records: Sequence[JobRecord]) -> dict[str, JobState]:
    server = _server(address, local)
    if server is None:
        return {record.key: JobState("ended", "its local Ray has ended") for record in records}
    try:
        jobs = server.jobs()
    except SubmitError as error:
        return {record.key: JobState("unknown", str(error)) for record in records}
    return {record.key: _state(jobs.get(record.id)) for record in records}


def _state(job: RayJob | None) -> JobState:
    if job is None:
        return JobState("ended", "its Ray has forgotten it, or was started anew")
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
