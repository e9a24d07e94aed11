"""The batch script of a run: `slurm/train.sbatch` or `slurm/ray.sbatch` filled in from its config."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from llmscale.config.cluster import ClusterSection
from llmscale_launcher.backends.base import JobRequest
from llmscale_launcher.ray.placement import agents_of, ask_of
from llmscale_launcher.template import Lines, Value, Words, render, templates_folder

SCRIPT_NAME = "job.sbatch"
TASKS_NAME = "tasks.txt"


def batch_script(request: JobRequest) -> str:
    """The script that sbatch gets for a run, or for an array of runs."""
    return ray_script(request) if request.config.cluster.kind == "ray" else train_script(request)


def train_script(request: JobRequest) -> str:
    """One agent a node, started by srun."""
    return _fill("train.sbatch", request)


def ray_script(request: JobRequest) -> str:
    """A Ray inside the allocation, and the run as a job of it."""
    return _fill("ray.sbatch", request)


def _fill(name: str, request: JobRequest) -> str:
    return render((templates_folder() / name).read_text(), script_values(request))


def script_values(request: JobRequest) -> dict[str, Value]:
    """What the templates of `slurm/` ask for."""
    cluster = request.config.cluster
    return {
        "DIRECTIVE": Lines(tuple(directives(request))),
        "FOLDER": str(request.folder),
        "TASKS": str(request.folder / TASKS_NAME) if request.tasks else "",
        "PYTHON": cluster.python or ("python3" if cluster.container else sys.executable),
        "PREFLIGHT": _yes_no(cluster.preflight),
        "EXCLUDE_BAD_NODES": _yes_no(cluster.exclude_bad_nodes),
        "REQUEUE": _yes_no(cluster.requeue),
        "MAX_REQUEUES": str(cluster.max_requeues),
        "IN_CONTAINER": Words(tuple(_apptainer(request))),
        "SRUN_OPTIONS": Words(tuple(_srun_options(request))),
        "NODES": str(cluster.nodes),
        "CPUS": str(ask_of(cluster).cpus),
        "DRIVER_CPUS": str(agents_of(request.config).cpus if request.config.task == "rlhf" else 0),
        "GPUS": str(cluster.gpus_per_node),
        "DASHBOARD_HOST": cluster.ray.dashboard_host,
        "EXPORT": Lines(tuple(f"{name}={shlex.quote(value)}" for name, value in cluster.environment.items())),
        "SETUP": Lines(tuple(cluster.setup)),
    }


def directives(request: JobRequest) -> Iterator[str]:
    """What stands behind `#SBATCH`, one each."""
    cluster, folder = request.config.cluster, request.folder
    log = Path("logs") / "job.log"
    if request.tasks:
        limit = f"%{cluster.max_parallel}" if cluster.max_parallel else ""
        yield f"--array=0-{len(request.tasks) - 1}{limit}"
    yield _option("--job-name", folder.name)
    # In an array %4a is the task's index, as it stands in the name of its run.
    yield _option("--output", f"{folder}-%4a/{log}" if request.tasks else str(folder / log))
    yield "--open-mode=append"
    yield _option("--chdir", str(request.directory))
    yield f"--nodes={cluster.nodes}"
    yield "--ntasks-per-node=1"
    yield from _resources(cluster)
    yield f"--signal=B:USR1@{cluster.signal_seconds}"
    yield "--requeue" if cluster.requeue else "--no-requeue"
    if cluster.elastic:
        yield "--no-kill"
    yield from cluster.options


def _resources(cluster: ClusterSection) -> Iterator[str]:
    if cluster.cpus_per_process:
        yield f"--cpus-per-task={cluster.cpus_per_process * cluster.processes_per_node}"
    if cluster.gpus_per_node:
        yield f"--gpus-per-node={cluster.gpus_per_node}"
    for option, value in (
        ("--mem", cluster.memory),
        ("--time", cluster.time),
        ("--partition", cluster.partition),
        ("--account", cluster.account),
        ("--qos", cluster.qos),
        ("--constraint", cluster.constraint),
        ("--exclude", ",".join(cluster.exclude)),
    ):
        if value:
            yield _option(option, value)
    if cluster.exclusive:
        yield "--exclusive"


def _option(name: str, value: str) -> str:
    """sbatch takes quotes as a shell does. The config's checks refuse what they would not hold."""
    return f"{name}={shlex.quote(value)}"


def _srun_options(request: JobRequest) -> Iterator[str]:
    cluster = request.config.cluster
    if cluster.elastic:
        yield "--no-kill"
    container = cluster.container
    if container and container.runtime == "pyxis":
        yield f"--container-image={container.image}"
        yield f"--container-mounts={','.join(_mounts(request))}"
        yield f"--container-workdir={request.directory}"


def _apptainer(request: JobRequest) -> Iterator[str]:
    container = request.config.cluster.container
    if container is None or container.runtime != "apptainer":
        return
    yield from ("apptainer", "exec", "--pwd", str(request.directory))
    if request.config.cluster.gpus_per_node:
        yield "--nv"
    for mount in _mounts(request):
        yield from ("--bind", mount)
    yield container.image


def _mounts(request: JobRequest) -> Iterator[str]:
    """The working directory and the folder of the runs are seen inside where they are outside."""
    container = request.config.cluster.container
    assert container is not None
    for folder in dict.fromkeys((request.directory, request.folder.parent)):
        yield f"{folder}:{folder}"
    yield from container.mounts


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
