"""`llmscale cancel`: ask runs to save and stop, wherever they run."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.backends.table import backend

from llmscale.config.problems import InputError, Problem
from llmscale.run.committed import committed_step
from llmscale.run.endings import CANCELLED_NAME
from llmscale.run.groups import find_group
from llmscale.run.standing import LIVE, RunStatus, read_statuses
from llmscale.runtime.run_folder import read_agent

CANCEL_SECONDS = 600.0
ASK_SECONDS = 0.5


def cancel(
    run: Annotated[str, typer.Argument(help="A run, a sweep or a pipeline.")],
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until it has saved and stopped.")
    ] = CANCEL_SECONDS,
) -> None:
    """Ask a run to save and stop, and not to be requeued; wait until it has. What waits never starts."""
    group = find_group(run, root)
    folders = group.folders
    live = [found for found in read_statuses(folders) if found.state in LIVE]
    if not live:
        raise InputError([Problem("RUN", run, f"does not run: {_how(read_statuses(folders)[0])}")])
    refusals = [refusal for found in live if (refusal := _ask(found)) is not None]
    for refusal in refusals:
        typer.echo(refusal, err=True)
    _wait([found.folder for found in live], time.monotonic() + wait)
    left = _report(folders)
    raise typer.Exit(1 if left or refusals else 0)


def _ask(found: RunStatus) -> str | None:
    """Ask one run to stop; returns why that was not possible."""
    agent = read_agent(found.folder)
    try:
        if found.job is not None:
            (found.folder / CANCELLED_NAME).touch()
            backend(found.job.kind).cancel(found.job)
    except SubmitError as error:
        return f"{found.name}: {error}"
    # Started by hand, or left alone by a supervisor that was killed.
    by_itself = found.job is None or found.job.kind == "local"
    if by_itself and agent is not None and agent.is_alive():
        os.kill(agent.pid, signal.SIGTERM)
    return None


def _wait(folders: list[Path], deadline: float) -> None:
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
