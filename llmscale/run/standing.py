"""How runs stand, a thousand of them in a second: one question to each scheduler, ends of files. No torch."""

import re
import socket
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.backends.table import backend
from llmscale_launcher.job import JobRecord, JobState, read_job

from llmscale.config.load import read_resolved
from llmscale.run.endings import CANCELLED_NAME, last_ending
from llmscale.runtime.events import FILE_NAME as EVENTS_NAME
from llmscale.runtime.events import Event, newest_events
from llmscale.runtime.metrics import FILE_NAME as METRICS_NAME
from llmscale.runtime.metrics import last_metrics, newest_metrics
from llmscale.runtime.parts import Now, read_part
from llmscale.runtime.run_folder import AGENT_NAME, CONFIG_NAME, AgentRecord, read_agent

FRESH_SECONDS = 120.0
"""A run elsewhere that nobody can be asked about counts as running while its files are this new."""
SPEED_STEPS = 20
"""Steps that the time that is left is judged by."""
VERDICTS = (1, 2, 3)
"""Exit codes that the run itself ends with when it fails."""
MARKER = "COMMITTED"
_STEPS = re.compile(
    r"^train:\n(?:[ ].*\n)*?  steps: (\d+)\n(?:  epochs: (.+)\n)?  stop_at: (\d+|null)\n", re.MULTILINE
)
_FOLDER = re.compile(r"^step-(\d{8,})$")

State = Literal[
    "pending",
    "requeued",
    "starting",
    "running",
    "stopping",
    "done",
    "saved",
    "cancelled",
    "failed",
    "gone",
    "unknown",
]

LIVE: tuple[State, ...] = ("pending", "requeued", "starting", "running", "stopping")


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    name: str
    folder: Path
    state: State
    """saved: ended with a checkpoint that it can go on from; gone: its processes ended without a word."""
    reason: str | None
    """Why it waits, or why it ended as it did."""
    step: int
    steps: int | None
    """That it ends with; None while that is not known (`train.epochs`, before the first step)."""
    saved: int | None
    """Step of the newest checkpoint."""
    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`; empty before the first step."""
    restarts: int
    """In place, in the last start of the run."""
    requeues: int
    """Since it was submitted."""
    last_failure: Event | None
    job: JobRecord | None
    nodes: str | None
    """Where the scheduler has put it."""
    depends_on: list[str]
    part: Now | None
    """Which part of a step it is at, of a run that runs and tells."""
    seconds_left: float | None
    """By the speed of the last steps; None for a run that does not run, or whose end is not known."""


@dataclass(frozen=True)
class _Files:
    """What the files of a run tell, read once."""

    folder: Path
    events: list[Event]
    metrics: dict[str, Any]
    agent: AgentRecord | None
    cancelled: bool
    agent_began: float
    """When the agent took the folder, in seconds since 1970; 0 without one."""
    last_metric: float
    """When the last line of `metrics.jsonl` was written."""
    last_sign: float
    """When anything was last written."""

    @property
    def since_submitted(self) -> list[Event]:
        submitted = [index for index, event in enumerate(self.events) if event.kind == "submitted"]
        return self.events[submitted[-1] :] if submitted else self.events


def read_status(folder: Path) -> RunStatus:
    """How the run in `folder` stands."""
    return read_statuses([folder])[0]


def read_statuses(folders: Sequence[Path]) -> list[RunStatus]:
    """How the runs stand, in the order of `folders`; every scheduler is asked once for all of them."""
    jobs = {folder: read_job(folder) for folder in folders}
    states = _job_states([job for job in jobs.values() if job is not None])
    return [_status(_read_files(folder), jobs[folder], states) for folder in folders]


def _job_states(jobs: Iterable[JobRecord]) -> dict[tuple[str, str], JobState]:
    """By kind and key of the job."""
    by_kind: dict[str, list[JobRecord]] = {}
    for job in jobs:
        by_kind.setdefault(job.kind, []).append(job)
    states: dict[tuple[str, str], JobState] = {}
    for kind, records in by_kind.items():
        try:
            found = backend(kind).states(records)
        except (SubmitError, ImportError) as error:
            found = {record.key: JobState("unknown", str(error)) for record in records}
        states |= {(kind, key): state for key, state in found.items()}
    return states


def _read_files(folder: Path) -> _Files:
    config, events, metrics, agent = (
        _written(folder / name) for name in (CONFIG_NAME, EVENTS_NAME, METRICS_NAME, AGENT_NAME)
    )
    return _Files(
        folder=folder,
        events=newest_events(folder),
        metrics=last_metrics(folder) or {},
        agent=read_agent(folder),
        cancelled=(folder / CANCELLED_NAME).exists(),
        agent_began=agent,
        last_metric=metrics,
        last_sign=max(config, events, metrics),
    )


def _written(path: Path) -> float:
    """When a file was last written; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _status(files: _Files, job: JobRecord | None, states: dict[tuple[str, str], JobState]) -> RunStatus:
    events = files.since_submitted
    starts = [index for index, event in enumerate(events) if event.kind == "started"]
    current = events[starts[-1] :] if starts else []
    failures = [event for event in files.events if event.kind == "failed"]
    requeues = [event for event in events if event.kind == "requeued"]
    known = job and states.get((job.kind, job.key), JobState("unknown", "its scheduler does not know it"))
    state, reason = _state(files, known)
    waits = state == "starting" or (state == "pending" and reason == "Dependency")
    if waits and job and job.depends_on and not starts:
        state, reason = "pending", f"waits for {', '.join(Path(run).name for run in job.depends_on)}"
    step = int(files.metrics.get("step", 0))
    steps = step if state == "done" and step else last_step(files.folder) or files.metrics.get("steps")
    return RunStatus(
        name=files.folder.name,
        folder=files.folder,
        state=state,
        reason=reason,
        step=step,
        steps=steps,
        saved=newest_saved(files.folder),
        metrics=files.metrics,
        restarts=sum(event.kind == "restarted" for event in current),
        requeues=int(requeues[-1].details.get("requeue", len(requeues))) if requeues else 0,
        last_failure=failures[-1] if failures else None,
        job=job,
        nodes=known.nodes if known else files.agent.host if files.agent else None,
        depends_on=job.depends_on if job else [],
        part=read_part(files.folder) if state == "running" and "reward_mean" in files.metrics else None,
        seconds_left=_seconds_left(files.folder, step, steps) if state == "running" else None,
    )


def _seconds_left(folder: Path, step: int, steps: int | None) -> float | None:
    """By the mean of the last steps; one alone may have had to wait."""
    if steps is None:
        return None
    return (steps - step) * statistics.fmean(
        line["step_seconds"] for line in newest_metrics(folder, SPEED_STEPS)
    )


def _state(files: _Files, job: JobState | None) -> tuple[State, str | None]:
    """State and reason, from what the scheduler says, whether the agent lives, and what the events tell."""
    alive = files.agent is not None and files.agent.is_alive()
    ending = last_ending(files.since_submitted)
    if alive and ending is not None and files.agent_began > ending.time:
        ending = None  # of an earlier start; this one has not written anything yet
    if ending is not None and ending.kind == "finished":
        return "done", None
    if job is not None and job.state in ("pending", "requeued"):
        return job.state, job.reason
    if alive or (job is not None and job.state == "running"):
        return _live(files, ending, files.agent_began if alive else 0.0)
    unseen = _unseen(files, job)
    if unseen is None or ending is not None:
        return _over(files, ending, job)
    if time.time() - files.last_sign < FRESH_SECONDS:
        return _live(files, None, 0.0)
    return "unknown", unseen


def _unseen(files: _Files, job: JobState | None) -> str | None:
    """Why it cannot be known from here whether the run lives; None where it can."""
    if job is not None:
        return (job.reason or "its scheduler gave no answer") if job.state == "unknown" else None
    host = files.agent.host if files.agent is not None else None
    return f"was started on {host}" if host not in (None, socket.gethostname()) else None


def _live(files: _Files, ending: Event | None, since: float) -> tuple[State, str | None]:
    """Of a run whose processes have the folder since `since` (0: that is not known)."""
    events = files.since_submitted
    if files.cancelled:
        return "stopping", "cancelled"
    if events and events[-1].kind == "requeued":
        return "requeued", events[-1].details.get("cause")
    if ending is not None and ending.kind == "preempted":
        return "stopping", "saved"
    begun = [event.time for event in events if event.kind in ("submitted", "started", "restarted")]
    if ending is None and files.metrics and files.last_metric > max([since, *begun]):
        return "running", None
    return "starting", None


def _over(files: _Files, ending: Event | None, job: JobState | None) -> tuple[State, str | None]:
    events = files.since_submitted
    if ending is None and events and events[-1].kind == "preflight_failed":
        ending = events[-1]
    if files.cancelled:
        return "cancelled", ending.details.get("cause") if ending is not None else None
    if ending is not None and ending.kind == "preempted":
        return "saved", "can go on"
    if ending is not None:
        return "failed", ending.details.get("cause")
    if job is not None and job.exit_code in VERDICTS:
        return "failed", f"exit code {job.exit_code}, see logs/job.log"
    return "gone", job.reason if job and job.reason else "its processes ended without a word"


def last_step(folder: Path) -> int | None:
    """The step that the run ends with, from the few lines of `config.yaml` that tell; None where they do not,
    because it goes by epochs."""
    text = (folder / CONFIG_NAME).read_text()
    found = _STEPS.search(text)
    if found is None:
        train = read_resolved(folder / CONFIG_NAME).train
        return train.last_step if train.epochs is None else None
    steps, epochs, stop_at = int(found[1]), found[2], found[3]
    if epochs not in (None, "null"):  # a config of before has no such line
        return None
    return steps if stop_at == "null" else min(steps, int(stop_at))


def newest_saved(folder: Path) -> int | None:
    """Step of the newest checkpoint that has its marker; `committed_step` looks closer, and takes longer."""
    try:
        names = [path for path in (folder / "checkpoints").iterdir() if _FOLDER.match(path.name)]
    except FileNotFoundError:
        return None
    for path in sorted(names, key=lambda path: int(path.name[5:]), reverse=True):
        if (path / MARKER).exists():
            return int(path.name[5:])
    return None
