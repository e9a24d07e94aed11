"""`llmscale report`: curves and tables of runs."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from llmscale.config.problems import InputError, Problem
from llmscale.runtime.run_folder import find_run


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; the first run's folder if left out.")
    ] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
) -> None:
    """Write report.html (one self-contained file), loss.png and, where the runs measure it, forgetting.png
    and confusion.png; several runs are laid over each other."""
    folders = [find_run(run, root) for run in runs]
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError([Problem("report", "", "needs matplotlib: pip install 'llmscale[report]'")])
    for path in write_report(folders, out or folders[0]):
        typer.echo(path)


def write_report(folders: list[Path], out: Path) -> list[Path]:
    """Write the report of the runs in `folders` to the folder `out`; returns the files."""
    from llmscale.report.gather import gather  # noqa: PLC0415 -- the next two load matplotlib
    from llmscale.report.html import page  # noqa: PLC0415
    from llmscale.report.pictures import draw_confusion, draw_loss, draw_trade, render  # noqa: PLC0415
    from llmscale.report.validations import confusion, trade  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    found = [gather(folder) for folder in folders]
    written = {"report.html": page(found).encode()}
    if any(run.metrics for run in found):
        written["loss.png"] = render(draw_loss, [run for run in found if run.metrics], "png", (10.0, 4.5))
    trading = [run for run in found if trade(run) is not None]
    if trading:
        written["forgetting.png"] = render(draw_trade, trading, "png", (8.0, 4.5))
    for run in found:
        if confusion(run) is not None:
            name = "confusion.png" if len(found) == 1 else f"confusion-{run.name}.png"
            written[name] = render(draw_confusion, [run], "png", (6.0, 4.5))
    for name, data in written.items():
        temporary = out / f".{name}.new"
        temporary.write_bytes(data)
        temporary.replace(out / name)
    return [out / name for name in written]
