"""`cluster.kind=slurm`: runs and sweeps as batch jobs."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale_launcher.backends.base import JobRequest, SubmitError
from llmscale_launcher.batch_script import SCRIPT_NAME, batch_script
from llmscale_launcher.job import JobRecord, JobState, write_whole
from llmscale_launcher.squeue import query_states

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
UNSAFE = re.compile(r"[\x00-\x1f\x7f'\"\\%]")
ANSWER_SECONDS = 60.0
"""How long SLURM's programs may take; they give up by themselves after MessageTimeout (10 s)."""


class SlurmBackend:
    has_arrays = True

    def check(self, config: Config) -> list[Problem]:
        problems: list[Problem] = []
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            message = f"{', '.join(missing)} not found on PATH: submit from a login node of the cluster"
            problems.append(Problem("cluster.kind", config.cluster.kind, message))
        for key, folder in (("run.root", config.run_folder.absolute()), ("working directory", Path.cwd())):
            if UNSAFE.search(str(folder)):
                message = "sbatch reads quotes, backslashes, % and line ends in paths as something else"
                problems.append(Problem(key, repr(str(folder)), f"{message}; choose another folder"))
        return problems

    def script(self, request: JobRequest) -> str:
        return batch_script(request)

    def submit(self, request: JobRequest) -> JobRecord:
        depends_on = list(_dependencies(request))
        options = ["--dependency=" + ",".join(depends_on), "--kill-on-invalid-dep=yes"] if depends_on else []
        script = request.folder / SCRIPT_NAME
        write_whole(script, self.script(request), 0o700)
        answer = _run("sbatch", "--parsable", *options, str(script))
        # ID, or ID;CLUSTER where there are several.
        number, _, cluster = answer.strip().partition(";")
        return JobRecord(
            kind="slurm",
            id=number,
            array_index=None,
            submitted=time.time(),
            cluster={"name": cluster} if cluster else None,
            depends_on=depends_on,
        )

    def states(self, records: Sequence[JobRecord]) -> dict[str, JobState]:
        return query_states(records)

    def cancel(self, record: JobRecord) -> None:
        """A job that waits is taken out of the queue; one that runs saves first. Either way SLURM is told
        that it is not to be requeued, so the script's own request for another turn is refused."""
        state = self.states([record])[record.key]
        if state.state == "ended":
            return
        if state.state in ("pending", "requeued"):
            _run("scancel", record.key)
            return
        _run("scontrol", "update", f"jobid={record.key}", "requeue=0")
        _run("scancel", "--batch", "--signal=USR1", record.key)

    def kill(self, record: JobRecord) -> None:
        """SLURM itself sends TERM first, and KILL after KillWait."""
        if self.states([record])[record.key].is_live:
            _run("scancel", record.key)


def _dependencies(request: JobRequest) -> Iterator[str]:
    for earlier in request.after:
        if earlier.job is not None:
            condition = "afterok" if earlier.until == "finished" else "afterany"
            yield f"{condition}:{earlier.job.key}"


def _run(program: str, *arguments: str) -> str:
    """What a program of SLURM says.

    Raises:
        SubmitError: with what it says when it refuses or cannot be run.
    """
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except OSError as error:
        raise SubmitError(f"{program}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SubmitError(f"{program} did not answer within {ANSWER_SECONDS:.0f} s") from None
    if done.returncode:
        raise SubmitError(f"{Path(program).name}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
