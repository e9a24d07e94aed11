"""`llmscale report`: curves and tables of runs."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llmscale.config.problems import InputError, Problem
from llmscale.runtime.run_folder import find_run


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; the first run's folder if left out.")
    ] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
) -> None:
    """Write report.html (one self-contained file), loss.png and, where the runs measure it, preferences.png,
    calibration.png, forgetting.png and confusion.png; of runs on rewards rewards.png and seconds.png; of
    profiled steps profile.png. Several runs are laid over each other. The figures of the validations and the
    profile of rank 0 are shown here, too."""
    folders = [find_run(run, root) for run in runs]
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError([Problem("report", "", "needs matplotlib: pip install 'llmscale[report]'")])
    for path in write_report(folders, out or folders[0]):
        typer.echo(path)
    for folder in folders:
        _show_figures(folder)
        _show_profile(folder)


def _show_figures(folder: Path) -> None:
    """What the first, the best and the last validation have found."""
    from llmscale.report.gather import gather  # noqa: PLC0415 -- as below
    from llmscale.report.validations import figures_table  # noqa: PLC0415

    figures = figures_table(gather(folder))
    if figures is None:
        return
    heads, rows = figures
    table = Table(title=folder.name, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _show_profile(folder: Path) -> None:
    """Of the first rank: those of the other pipeline stages are in the report."""
    from llmscale.runtime.profiling.files import read_breakdowns  # noqa: PLC0415 -- as above
    from llmscale.runtime.profiling.tables import shown  # noqa: PLC0415

    for found in read_breakdowns(folder):
        if found.rank == 0:
            Console().print(shown(found), highlight=False)


def write_report(folders: list[Path], out: Path) -> list[Path]:
    """Write the report of the runs in `folders` to the folder `out`; returns the files."""
    from llmscale.report.gather import gather  # noqa: PLC0415 -- the next two load matplotlib
    from llmscale.report.html import page  # noqa: PLC0415
    from llmscale.report.pictures import draw_confusion, draw_loss, draw_trade, render  # noqa: PLC0415
    from llmscale.report.preference_pictures import draw_calibration, preference_pictures  # noqa: PLC0415
    from llmscale.report.preferences import calibration, is_on_preferences  # noqa: PLC0415
    from llmscale.report.profile_pictures import profile_picture  # noqa: PLC0415
    from llmscale.report.reward_pictures import (  # noqa: PLC0415
        draw_parts_of_steps,
        draw_reward,
        reward_pictures,
    )
    from llmscale.report.rewards import seconds_of_parts  # noqa: PLC0415
    from llmscale.report.validations import confusion, trade  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    found = [gather(folder) for folder in folders]
    written = {"report.html": page(found).encode()}
    begun = [run for run in found if run.metrics]
    losing = [run for run in begun if not run.is_on_rewards]
    if losing:
        written["loss.png"] = render(draw_loss, losing, "png", (10.0, 4.5))
    rewarded = [run for run in begun if run.is_on_rewards]
    if rewarded:
        drawn = [draw_reward, *reward_pictures(rewarded)]
        written["rewards.png"] = render(drawn, rewarded, "png", (11.0, 3.3 * -(-len(drawn) // 2)))
    trading = [run for run in found if trade(run) is not None]
    if trading:
        written["forgetting.png"] = render(draw_trade, trading, "png", (8.0, 4.5))
    compared = [run for run in found if is_on_preferences(run)]
    drawn = preference_pictures(compared) if compared else []
    if drawn:
        size = (5.5 * min(2, len(drawn)), 3.5 * -(-len(drawn) // 2))
        written["preferences.png"] = render(drawn, compared, "png", size)
    for run in found:
        own = ".png" if len(found) == 1 else f"-{run.name}.png"
        if calibration(run) is not None:
            written[f"calibration{own}"] = render(draw_calibration, [run], "png", (6.0, 4.5))
        if seconds_of_parts(run):
            written[f"seconds{own}"] = render(draw_parts_of_steps, [run], "png", (10.0, 4.5))
        if run.profiles:
            drawn = [profile_picture(found) for found in run.profiles]
            size = (10.0 * min(2, len(drawn)), 4.2 * -(-len(drawn) // 2))
            written[f"profile{own}"] = render(drawn, [run], "png", size)
        if confusion(run) is not None:
            written[f"confusion{own}"] = render(draw_confusion, [run], "png", (6.0, 4.5))
    for name, data in written.items():
        temporary = out / f".{name}.new"
        temporary.write_bytes(data)
        temporary.replace(out / name)
    return [out / name for name in written]
