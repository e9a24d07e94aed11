"""`llmscale cluster`: what launchers start on the nodes of a job; rarely typed by hand."""

from pathlib import Path
from typing import Annotated

import typer

from llmscale.commands.cluster_ray import ray_attempt, ray_driver, ray_job, ray_local
from llmscale.commands.node import run_coordinator, run_node, run_preflight
from llmscale.run.supervise import Supervisor

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

RunFolder = Annotated[Path, typer.Argument(help="The run folder that `submit` made.", show_default=False)]


@app.callback()
def cluster() -> None:
    """What launchers start on the nodes of a job; rarely typed by hand."""


@app.command()
def node(run_folder: RunFolder) -> None:
    """Run a job's part on this node: its agent, and on the first node the coordinator.

    Who this node is comes from SLURM's variables, or from LLMSCALE_NODE (0 is the first), LLMSCALE_NODES and
    LLMSCALE_RENDEZVOUS (HOST:PORT of the first node). Exit codes are those of `llmscale train`.
    """
    raise typer.Exit(run_node(run_folder))


@app.command()
def preflight(
    run_folder: RunFolder,
    seconds: Annotated[float, typer.Option(help="How long all of it may take.")] = 60.0,
) -> None:
    """Look at all nodes of a job at once, before it trains; run on every node, as `cluster node` is.

    Exit codes: 0 every node is fit, 1 some are not (named in preflight.json of the run folder).
    """
    raise typer.Exit(run_preflight(run_folder, seconds))


@app.command()
def coordinate(
    run_folder: RunFolder,
    written_to: Annotated[Path, typer.Option(help="File that gets HOST:PORT once it listens.")],
    host: Annotated[str, typer.Option(help="Name or address by which agents reach this machine.")],
    port: Annotated[int, typer.Option(help="Where to listen; 0: any port.")] = 0,
) -> None:
    """Run only the coordinator, for agents that get its address as LLMSCALE_COORDINATOR."""
    raise typer.Exit(run_coordinator(run_folder, host, port, written_to))


@app.command()
def supervise(
    run_folder: RunFolder,
    finished: Annotated[list[Path] | None, typer.Option(help="Start when this run has finished.")] = None,
    ended: Annotated[list[Path] | None, typer.Option(help="Start when this run is over, however.")] = None,
) -> None:
    """Run a job here, and again after a preemption, without a scheduler: `cluster.kind=local`."""
    raise typer.Exit(Supervisor(run_folder, finished or [], ended or []).run())


for ray_command in (ray_driver, ray_attempt, ray_job, ray_local):
    app.command()(ray_command)
