"""`llmscale cluster`: what launchers start on the nodes of a job; rarely typed by hand."""

from pathlib import Path
from typing import Annotated

import typer

from llmscale.run.supervise import Supervisor

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

RunFolder = Annotated[Path, typer.Argument(help="The run folder that `submit` made.", show_default=False)]


@app.callback()
def cluster() -> None:
    """What launchers start on the nodes of a job; rarely typed by hand."""


@app.command()
def supervise(
    run_folder: RunFolder,
    finished: Annotated[list[Path] | None, typer.Option(help="Start when this run has finished.")] = None,
    ended: Annotated[list[Path] | None, typer.Option(help="Start when this run is over, however.")] = None,
) -> None:
    """Run a job here, and again after a preemption, without a scheduler: `cluster.kind=local`."""
    raise typer.Exit(Supervisor(run_folder, finished or [], ended or []).run())
