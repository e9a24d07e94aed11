"""`llmscale status`, `logs` and `cancel`: runs on this machine, told from their folders."""

import os
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError, Problem
from llmscale.run.committed import committed_step
from llmscale.runtime.describe import describe_event, duration, quantity
from llmscale.runtime.events import Event, read_events
from llmscale.runtime.metrics import last_metrics
from llmscale.runtime.run_folder import find_run, read_agent, run_folders

ENDINGS = {"finished": "done", "preempted": "saved, can go on", "failed": "failed"}
CANCEL_SECONDS = 600.0
FOLLOW_SECONDS = 0.3

Root = Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")]


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    name: str
    state: str
    """`running`, `starting`, or how it ended."""
    step: int
    steps: int
    saved: int | None
    """Step of the newest committed checkpoint."""
    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`; empty before the first step."""
    restarts: int
    """In the last start of the run."""
    last_failure: Event | None


def read_status(folder: Path) -> RunStatus:
    """How the run in `folder` stands, from its files alone."""
    config = read_resolved(folder / "config.yaml")
    events = read_events(folder)
    starts = [index for index, event in enumerate(events) if event.kind == "started"]
    current = events[starts[-1] :] if starts else []
    failures = [event for event in events if event.kind == "failed"]
    agent = read_agent(folder)
    metrics = last_metrics(folder) or {}
    if agent and agent.is_alive():
        state = "running" if metrics else "starting"
    else:
        endings = [ENDINGS[event.kind] for event in current if event.kind in ENDINGS]
        state = endings[-1] if endings else "gone without a word"
    return RunStatus(
        name=folder.name,
        state=state,
        step=metrics.get("step", 0),
        steps=min(config.train.steps, config.train.stop_at or config.train.steps),
        saved=committed_step(folder),
        metrics=metrics,
        restarts=sum(event.kind == "restarted" for event in current),
        last_failure=failures[-1] if failures else None,
    )


def status(
    run: Annotated[str | None, typer.Argument(help="Name or folder of a run; all runs if left out.")] = None,
    root: Root = Path("runs"),
) -> None:
    """How runs stand: step, loss, speed, time left, restarts, last failure."""
    console = Console()
    if run is not None:
        _print_one(read_status(find_run(run, root)), console)
        return
    folders = run_folders(root)
    if not folders:
        console.print(f"no runs under {root}")
        return
    table = Table(
        "run", "state", "step", "loss", "tokens/s", "time left", "saved", "restarts", box=None, pad_edge=False
    )
    for folder in folders:
        found = read_status(folder)
        cells = _cells(found)
        saved = "-" if found.saved is None else str(found.saved)
        table.add_row(found.name, found.state, *cells, saved, str(found.restarts))
    console.print(table)


def _cells(found: RunStatus) -> tuple[str, str, str, str]:
    """Step, loss, speed and time left."""
    step, metrics = f"{found.step}/{found.steps}", found.metrics
    if not metrics:
        return step, "-", "-", "-"
    left = duration((found.steps - found.step) * metrics["step_seconds"]) if found.state == "running" else "-"
    return step, f"{metrics['loss']:.4f}", quantity(metrics["tokens_per_second"]), left


def _print_one(found: RunStatus, console: Console) -> None:
    step, loss, speed, left = _cells(found)
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("run", found.name),
        ("state", found.state),
        ("step", step),
        ("loss", loss),
        ("tokens/s", speed),
        ("time left", left),
        ("saved", "nothing yet" if found.saved is None else f"step {found.saved}"),
        ("restarts", str(found.restarts)),
    ):
        table.add_row(name, value)
    console.print(table)
    failure = found.last_failure
    if failure:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure.time))
        console.print(
            f"last failure ({when}): {describe_event('failed', failure.step, failure.details)}", markup=False
        )
        for line in failure.details.get("log_lines", []):
            console.print(f"  | {line}", markup=False, highlight=False)


def logs(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    rank: Annotated[int | None, typer.Option(help="Only this rank; all if left out.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Last lines of each rank.")] = 20,
    root: Root = Path("runs"),
) -> None:
    """What the ranks of a run have written."""
    folder = find_run(run, root)
    pattern = "rank-*.log" if rank is None else f"rank-{rank}.log"
    files = sorted((folder / "logs").glob(pattern), key=lambda path: int(path.stem.partition("-")[2]))
    if not files:
        raise InputError([Problem("RUN", run, f"{folder / 'logs'} has no {pattern} yet")])
    offsets: dict[Path, int] = {}
    for path in files:
        with path.open("rb") as file:
            for line in deque(file, maxlen=lines):
                _print_line(path, line)
            offsets[path] = file.tell()
    while follow:
        agent = read_agent(folder)
        alive = agent is not None and agent.is_alive()
        for path in files:
            offsets[path] = _print_from(path, offsets[path])
        if not alive:
            return
        time.sleep(FOLLOW_SECONDS)


def _print_from(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            _print_line(path, line)
            offset += len(line)
    return offset


def _print_line(path: Path, line: bytes) -> None:
    typer.echo(f"[{path.stem.removeprefix('rank-')}] {line.decode(errors='replace').rstrip()}")


def cancel(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    root: Root = Path("runs"),
) -> None:
    """Ask a run to save and stop, and wait until it has."""
    folder = find_run(run, root)
    agent = read_agent(folder)
    if agent is None or not agent.is_alive():
        where = f" (it was started on {agent.host})" if agent else ""
        raise InputError([Problem("RUN", run, f"does not run on this machine{where}")])
    os.kill(agent.pid, signal.SIGTERM)
    deadline = time.monotonic() + CANCEL_SECONDS
    while agent.is_alive():
        if time.monotonic() > deadline:
            typer.echo(f"{folder.name} was asked to stop and still runs (process {agent.pid})", err=True)
            raise typer.Exit(1)
        time.sleep(FOLLOW_SECONDS)
    typer.echo(f"{folder.name} stopped; newest checkpoint: step {committed_step(folder)}")
