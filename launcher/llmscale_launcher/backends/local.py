"""`cluster.kind=local`: a detached supervisor on this machine in place of a scheduler."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale_launcher.backends.base import Earlier, JobRequest, SubmitError
from llmscale_launcher.job import JobRecord, JobState, write_whole

SCRIPT_NAME = "job.sh"
LOG_NAME = "logs/job.log"
SAME_PROCESS_SECONDS = 1.0
"""How exactly a process's time of creation is known."""


class LocalBackend:
    """Jobs are processes; a job's id, `PID@CREATED@HOST`, tells one from later ones of the same number."""

    has_arrays = False

    def check(self, config: Config) -> list[Problem]:
        if config.cluster.nodes == 1:
            return []
        message = "cluster.kind=local is this machine alone; set it to slurm or ray, or set cluster.nodes=1"
        return [Problem("cluster.nodes", config.cluster.nodes, message)]

    def script(self, request: JobRequest) -> str:
        cluster = request.config.cluster
        options = [f"--{earlier.until}={earlier.folder}" for earlier in request.after]
        command = [sys.executable, "-m", "llmscale", "cluster", "supervise", str(request.folder), *options]
        environment = [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
        return "\n".join(
            [
                "#!/bin/bash",
                "# Made by `llmscale submit`: what runs in the background.",
                # The snapshot comes before the folder that the job works in, which may be a checkout.
                f"export PYTHONPATH={shlex.quote(str(request.code))} PYTHONSAFEPATH=1",
                *environment,
                *cluster.setup,
                f"exec {shlex.join(command)}",
                "",
            ]
        )

    def submit(self, request: JobRequest) -> JobRecord:
        script = request.folder / SCRIPT_NAME
        write_whole(script, self.script(request), 0o700)
        log = request.folder / LOG_NAME
        log.parent.mkdir(exist_ok=True)
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    ["/bin/bash", str(script)],
                    cwd=request.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            return self.record(process.pid, request.after)
        except (OSError, psutil.NoSuchProcess) as error:
            raise SubmitError(f"{script} did not start: {error}") from error

    def record(self, pid: int, after: Sequence[Earlier]) -> JobRecord:
        """The job whose supervisor is the process `pid` of this machine."""
        created = psutil.Process(pid).create_time()
        return JobRecord(
            kind="local",
            id=f"{pid}@{created:.2f}@{socket.gethostname()}",
            array_index=None,
            submitted=time.time(),
            depends_on=[str(earlier.folder) for earlier in after],
        )

    def states(self, records: Sequence[JobRecord]) -> dict[str, JobState]:
        return {record.key: _state(record) for record in records}

    def cancel(self, record: JobRecord) -> None:
        if _host(record) != socket.gethostname():
            raise SubmitError(f"it runs on {_host(record)}: cancel it there")
        process = _process(record)
        if process is not None:
            # It may end by itself in between.
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)

    def kill(self, record: JobRecord) -> None:
        """The supervisor and its agent; ranks end with their agent."""
        process = _process(record) if _host(record) == socket.gethostname() else None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _state(record: JobRecord) -> JobState:
    host = _host(record)
    if host != socket.gethostname():
        return JobState("unknown", f"a process on {host}, which only {host} can see")
    process = _process(record)
    return JobState("ended") if process is None else JobState("running", nodes=host)


def _host(record: JobRecord) -> str:
    return record.id.split("@", 2)[2]


def _process(record: JobRecord) -> psutil.Process | None:
    """The supervisor, if it lives."""
    pid, created, _ = record.id.split("@", 2)
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(created)) < SAME_PROCESS_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
