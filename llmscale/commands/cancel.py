"""`llmscale cancel`: ask runs to save and stop, wherever they run."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.backends.table import backend
from llmscale_launcher.job import JobRecord

from llmscale.config.problems import InputError, Problem
from llmscale.run.committed import committed_step
from llmscale.run.endings import CANCELLED_NAME
from llmscale.run.groups import find_group
from llmscale.run.standing import LIVE, RunStatus, read_statuses
from llmscale.runtime.run_folder import read_agent

CANCEL_SECONDS = 600.0
KILL_SECONDS = 60.0
ASK_SECONDS = 1.0
"""Between questions to the scheduler."""


def cancel(
    run: Annotated[str, typer.Argument(help="A run, a sweep or a pipeline.")],
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until it has saved and stopped.")
    ] = CANCEL_SECONDS,
    kill: Annotated[
        bool, typer.Option("--kill", help="End what has not stopped by then; unsaved steps are lost.")
    ] = False,
) -> None:
    """Ask a run to save and stop, and not to be requeued; wait until it has. What waits never starts."""
    folders = find_group(run, root).folders
    found = read_statuses(folders)
    live = [each for each in found if each.state in (*LIVE, "unknown")]
    if not live:
        raise InputError([Problem("RUN", run, f"does not run; it {_how(found[-1])}")])
    # The last one first: a stage must not start because the one before it has ended.
    refusals = {each.folder: refusal for each in reversed(live) if (refusal := _ask(each)) is not None}
    asked = [each.folder for each in live if each.folder not in refusals]
    _wait(asked, wait)
    if kill:
        refusals |= _kill(asked)
    for refusal in refusals.values():
        typer.echo(refusal, err=True)
    left = _report(asked)
    raise typer.Exit(1 if left or refusals else 0)


def _ask(found: RunStatus) -> str | None:
    """Ask one run to stop; returns why that was not possible."""
    return _tell(found, lambda job: backend(job.kind).cancel(job), signal.SIGTERM)


def _kill(folders: list[Path]) -> dict[Path, str]:
    """End the runs that still live; returns why that was not possible."""
    left = [found for found in read_statuses(folders) if found.state in LIVE]
    refusals = {
        found.folder: refusal
        for found in left
        if (refusal := _tell(found, lambda job: backend(job.kind).kill(job), signal.SIGKILL)) is not None
    }
    _wait([found.folder for found in left], KILL_SECONDS)
    return refusals


def _tell(found: RunStatus, tell_job: Callable[[JobRecord], None], number: signal.Signals) -> str | None:
    """Through the scheduler where there is one, else by a signal to the agent; returns what went wrong."""
    job, agent = found.job, read_agent(found.folder)
    if job is not None:
        (found.folder / CANCELLED_NAME).touch()
        try:
            tell_job(job)
            is_alone = job.kind == "local" and not backend(job.kind).states([job])[job.key].is_live
        except SubmitError as error:
            return f"{found.name}: {error}"
        if not is_alone:
            return None
    # Started by hand, or left alone by a supervisor that was killed.
    if agent is not None and agent.is_alive():
        os.kill(agent.pid, number)
    elif job is None:
        return f"{found.name}: runs on {found.nodes}, which only {found.nodes} can see: cancel it there"
    return None


def _wait(folders: list[Path], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(found.state in LIVE for found in read_statuses(folders)) and time.monotonic() < deadline:
        time.sleep(ASK_SECONDS)


def _report(folders: list[Path]) -> bool:
    """Say how each run stands now; returns whether one still lives."""
    left = False
    for found in read_statuses(folders):
        saved = committed_step(found.folder)
        newest = "no checkpoint" if saved is None else f"newest checkpoint: step {saved}"
        if found.state in LIVE:
            left = True
            typer.echo(f"{found.name} was asked to stop and still is {found.state}", err=True)
        else:
            typer.echo(f"{found.name} {_how(found)}; {newest}")
    return left


def _how(found: RunStatus) -> str:
    return "stopped" if found.state in ("saved", "cancelled") else f"is {found.state}"
