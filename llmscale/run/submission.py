"""Hands runs to a scheduler: everything is checked, then everything is frozen, then jobs are submitted."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmscale_launcher.backends.base import Earlier, JobRequest, SubmitError
from llmscale_launcher.backends.table import backend
from llmscale_launcher.batch_script import TASKS_NAME
from llmscale_launcher.job import JobRecord, read_job, write_job, write_whole
from llmscale_launcher.planned import PlannedJob
from llmscale_launcher.snapshot import GitState, freeze_code, freeze_git, freeze_token, link_frozen, read_git

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.run.admission import check_fits, check_run
from llmscale.run.endings import CANCELLED_NAME
from llmscale.run.rlhf_room import check_room
from llmscale.runtime.events import EventLog
from llmscale.runtime.run_folder import read_agent, write_config


def check_jobs(jobs: Sequence[PlannedJob]) -> None:
    """Ask everything that can be asked before a job is handed over.

    Raises:
        InputError: every problem of every run; what several share is said once.
    """
    before: dict[Path, Config] = {}
    problems: dict[str, Problem] = {}
    for job in jobs:
        found = [*backend(job.config.cluster.kind).check(job.config), *check_room(job.config)]
        for folder, config in job.runs.items():
            found += [*check_run(config, before), *check_fits(config)]
            before[folder] = config
        problems |= {str(problem): problem for problem in found}
    problems |= {str(problem): problem for problem in (*_check_order(jobs), *_check_idle(before))}
    if problems:
        raise InputError(list(problems.values()))


def requests(jobs: Sequence[PlannedJob]) -> Iterator[JobRequest]:
    """What the backends would be given, without the ids of jobs that are not submitted yet."""
    for job in jobs:
        yield _request(job, {}, jobs)


def submit_jobs(jobs: Sequence[PlannedJob]) -> dict[Path, JobRecord]:
    """Freeze and submit, in order; returns the job of every run folder.

    Raises:
        SubmitError: a scheduler refused a job. Those before it are cancelled again.
    """
    records: dict[Path, JobRecord] = {}
    git = read_git()
    for job in jobs:
        _freeze(job, git, twin=jobs[0].folder if job is not jobs[0] else None)
    for job in jobs:
        try:
            record = _submit(job, _request(job, records, jobs))
        except SubmitError:
            _take_back(records.values())
            raise
        for place, folder in enumerate(job.runs):
            own = replace(record, array_index=place) if job.tasks else record
            write_job(folder, own)
            records[folder] = own
    return records


def _take_back(records: Iterable[JobRecord]) -> None:
    """Cancel what has just been submitted. The first refusal is what the user needs to hear of."""
    for record in records:
        with suppress(SubmitError):
            backend(record.kind).cancel(record)


def _submit(job: PlannedJob, request: JobRequest) -> JobRecord:
    """The event comes first: whatever the job writes, however soon, belongs to this submission."""
    logs = [EventLog(folder) for folder in job.runs]
    for log in logs:
        log.write("submitted", backend=job.config.cluster.kind)
    try:
        return backend(job.config.cluster.kind).submit(request)
    except SubmitError as error:
        for log in logs:
            log.write("failed", cause=f"not submitted: {error}")
        raise


def _check_order(jobs: Iterable[PlannedJob]) -> Iterator[Problem]:
    """What runs without SLURM looks at the folders of those before it; SLURM knows its own jobs alone."""
    by_folder = {job.folder: job for job in jobs}
    for job in by_folder.values():
        for wait in job.after:
            earlier = by_folder[wait.folder]
            if _is_of_slurm(job.config) and not _is_of_slurm(earlier.config):
                message = (
                    f"waits for {earlier.folder.name}, whose kind {earlier.config.cluster.kind} SLURM does "
                    "not know; give both a kind of SLURM, or submit this one when that is done"
                )
                yield Problem(f"{job.folder.name}: cluster.kind", job.config.cluster.kind, message)


def _is_of_slurm(config: Config) -> bool:
    ray = config.cluster.ray
    inside = config.cluster.kind == "ray" and ray.address is None and ray.within == "slurm"
    return inside or config.cluster.kind == "slurm"


def _check_idle(folders: Iterable[Path]) -> Iterator[Problem]:
    """A run has one job. Each scheduler is asked once."""
    jobs: dict[str, dict[Path, JobRecord]] = defaultdict(dict)
    for folder in folders:
        agent, record = read_agent(folder), read_job(folder)
        if agent is not None and agent.is_alive():
            yield _busy(folder, f"process {agent.pid} on {agent.host} trains in {folder}")
        elif record is not None:
            jobs[record.kind][folder] = record
    for kind, records in jobs.items():
        states = backend(kind).states(list(records.values()))
        for folder, record in records.items():
            state = states[record.key]
            if state.state == "unknown":
                yield _busy(folder, f"has {kind} job {record.key}, which may still run ({state.reason})")
            elif state.is_live:
                yield _busy(folder, f"is submitted already: {kind} job {record.key} is {state.state}")


def _busy(folder: Path, what: str) -> Problem:
    message = f"{what}; choose another run.name, or `llmscale cancel {folder.name}` first"
    return Problem("run.name", folder.name, message)


def _request(job: PlannedJob, records: dict[Path, JobRecord], jobs: Sequence[PlannedJob]) -> JobRequest:
    return JobRequest(
        config=job.config,
        folder=job.folder,
        tasks=tuple(task.folder for task in job.tasks),
        after=tuple(Earlier(wait.folder, records.get(wait.folder), wait.until) for wait in job.after),
        beside=tuple(other.config for other in jobs if other.config.cluster.kind == "ray"),
    )


def _freeze(job: PlannedJob, git: GitState, twin: Path | None) -> None:
    """Fill the run folders with what the job will read; `twin` is frozen already, with the same code."""
    make_folder(job.folder)
    freeze_code(job.folder, twin)
    freeze_git(job.folder, git)
    for folder, config in job.runs.items():
        make_folder(folder)
        if folder != job.folder:
            link_frozen(folder, job.folder)
        write_config(config, folder)
        freeze_token(folder)
        (folder / CANCELLED_NAME).unlink(missing_ok=True)
    if job.tasks:
        write_whole(job.folder / TASKS_NAME, "".join(f"{task.folder}\n" for task in job.tasks))


def make_folder(folder: Path) -> None:
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot be written to ({error.strerror}); choose another run.root"
        raise InputError([Problem("run.root", folder, message)]) from None
