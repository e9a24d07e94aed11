"""`llmscale cluster ray-…`: what runs on and around a Ray; `cluster.kind=ray` starts them."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.ray.attempt import Attempt
from llmscale_launcher.ray.follow import JobFollower
from llmscale_launcher.ray.guard import guarded
from llmscale_launcher.ray.jobs import JobServer, user_token
from llmscale_launcher.ray.local import IDLE_SECONDS, Keeper

from llmscale.control.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_SAVED
from llmscale.run.endings import last_ending
from llmscale.run.supervise import Supervisor
from llmscale.runtime.events import read_events

RunFolder = Annotated[Path, typer.Argument(help="The run folder that `submit` made.", show_default=False)]

EXIT_CODES = {"finished": EXIT_DONE, "preempted": EXIT_SAVED, "failed": EXIT_FAILED}


def ray_driver(
    run_folder: RunFolder,
    finished: Annotated[list[Path] | None, typer.Option(help="Start when this run has finished.")] = None,
    ended: Annotated[list[Path] | None, typer.Option(help="Start when this run is over, however.")] = None,
) -> None:
    """The entrypoint of a Ray job: attempts of a run, until it is over."""
    attempt = [sys.executable, "-m", "llmscale", "cluster", "ray-attempt"]
    # The driver of an attempt is a process of its own: when it dies, the run goes on with another one.
    supervisor = Supervisor(run_folder, finished or [], ended or [], guarded(attempt, os.getpid()))
    raise typer.Exit(supervisor.run())


def ray_attempt(
    run_folder: RunFolder,
    preflight: Annotated[bool, typer.Option(help="Look at the nodes first, if the config says so.")] = True,
) -> None:
    """One attempt of a run on the Ray of this job: reserves nodes, places agents, runs the coordinator."""
    ran_before = any(event.kind == "started" for event in read_events(run_folder))
    raise typer.Exit(Attempt(run_folder, ran_before, preflight).run())


def ray_job(
    run_folder: RunFolder,
    address: Annotated[str, typer.Option(help="Job server of the Ray, http://HOST:PORT.")],
    nodes: Annotated[
        int, typer.Option(min=1, help="Machines of the Ray, all of which must have joined.")
    ] = 1,
) -> None:
    """Hand one attempt of a run to a Ray, pass signals on to it, and end with its exit code."""
    follower = JobFollower(run_folder, JobServer(address, user_token()))
    follower.listen()
    try:
        follower.wait_for_machines(nodes)
    except SubmitError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None
    if follower.asked_to_stop:
        raise typer.Exit(EXIT_SAVED)
    try:
        job = follower.run()
    except SubmitError as error:
        print(f"lost: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_SAVED) from None
    if job.exit_code is not None:
        raise typer.Exit(job.exit_code)
    # A job that was stopped has no exit code in Ray; the run's events say how it ended.
    ending = last_ending(read_events(run_folder))
    raise typer.Exit(EXIT_SAVED if ending is None else EXIT_CODES[ending.kind])


def ray_local(
    cpus: Annotated[int, typer.Option(min=1, help="CPUs that Ray counts on this machine.")],
    dashboard_host: Annotated[str, typer.Option(help="Address that the dashboard listens on.")] = "127.0.0.1",
    idle_seconds: Annotated[
        float, typer.Option(min=0, help="How long to stay without a job.")
    ] = IDLE_SECONDS,
) -> None:
    """Be the parent of a Ray on this machine, until nobody has used it for a while."""
    raise typer.Exit(Keeper(cpus, dashboard_host, idle_seconds).run())
