"""`llmscale plan`: what a config needs, before anything is paid for."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from llmscale.config.load import load_config
from llmscale.config.schema import Config
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.plan.devices import device_named
from llmscale.plan.memory import fullest_rank
from llmscale.plan.neighbours import what_fits
from llmscale.plan.report import bytes_text, plan_report, suggestions
from llmscale.plan.rlhf_neighbours import too_large, what_fits_pools
from llmscale.plan.rlhf_report import processes_on_a_node, rlhf_report
from llmscale.plan.speed import ASSUMED_UTILISATION
from llmscale.run.rlhf_room import check_room


def plan(
    config: Annotated[Path, typer.Argument(help="Config file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, such as parallel.tensor=2."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="What each rank runs on: cpu (this machine), H100, H200, A100, L4, …")
    ] = "cpu",
    mfu: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Share of the device's peak that is reached, for the time."),
    ] = ASSUMED_UTILISATION,
) -> None:
    """What a config needs: ranks, memory of the fullest rank, tokens and time.

    Exit code 2 where it cannot fit, with what would. Needs no data, and no tokenizer where
    model.vocabulary_size is set.
    """
    loaded = load_config(config, overrides or [])
    vocabulary_size = resolved_vocabulary_size(loaded)
    if loaded.task == "rlhf":
        _plan_pools(loaded, vocabulary_size, device)
        return
    target = device_named(device, loaded.cluster.processes_per_node)
    console = Console()
    console.print(plan_report(loaded, vocabulary_size, target, mfu))
    stage, memory = fullest_rank(loaded, vocabulary_size)
    if memory.total <= target.memory:
        return
    missing = bytes_text(memory.total - target.memory)
    console.print(f"[red]Does not fit:[/red] ranks of pipeline stage {stage} miss {missing}.")
    console.print(suggestions(what_fits(loaded, vocabulary_size, target.memory)))
    raise typer.Exit(2)


def _plan_pools(config: Config, vocabulary_size: int, device: str) -> None:
    """Of reinforcement learning: each pool, and what a Ray that runs already has no room for."""
    target, console = device_named(device, processes_on_a_node(config)), Console()
    console.print(rlhf_report(config, vocabulary_size, target))
    room = [problem.message for problem in check_room(config)]
    memory = list(too_large(config, vocabulary_size, target))
    for problem in room + memory:
        console.print("[red]Does not fit:[/red]", Text(problem), soft_wrap=True)
    if memory:
        console.print(suggestions(what_fits_pools(config, vocabulary_size, target.memory)))
    if room or memory:
        raise typer.Exit(2)
