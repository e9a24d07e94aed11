"""`llmscale checkpoint`: what a run has stored, and whether it is all there."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from llmscale.checkpoint.epochs import read_epochs
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.store import Checkpoint, inspect, locate, size_faults, verify
from llmscale.commands.exchange import export_command, import_command
from llmscale.commands.quiet import silence_import_warnings
from llmscale.config.problems import InputError, Problem
from llmscale.train.best import best_step

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("export")(export_command)
app.command("import")(import_command)

Target = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|CHECKPOINT", help="A run folder or name, or one checkpoint.", show_default=False
    ),
]
Root = Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")]
COLORS = {"committed": "green", "uncommitted": "yellow", "fenced": "yellow", "damaged": "red"}


@app.command("list")
def list_command(target: Target, root: Root = Path("runs")) -> None:
    """The steps that are stored: size, age, layout, state. Marker, manifest and shard sizes are looked at."""
    table = Table(
        "step", "size", "age", "ranks", "layout", "state", box=None, pad_edge=False, header_style="bold"
    )
    stored = _find(target, root)
    best = _best_step(stored)
    for found in stored:
        *facts, state = _row(found)
        if found.step == best:
            state = Text.assemble(state, ", best")
        table.add_row(str(found.step), *facts, state)
    Console().print(table)


@app.command("verify")
def verify_command(
    target: Target,
    layout: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="For --deep: a layout, such as parallel.tensor=2."),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Load the weights too, and compare what they compute with the save."),
    ] = False,
    own_layout: Annotated[
        bool,
        typer.Option("--own-layout", help="For --deep: as many ranks as a replica had when it was saved."),
    ] = False,
    root: Root = Path("runs"),
) -> None:
    """Reread every byte and compare hashes, coverage and headers. Ends with 1 where anything is wrong, and,
    with --deep, where there is nothing to compare with."""
    # Needs torch, which listing does without.
    from llmscale.checkpoint.coverage import stored_faults  # noqa: PLC0415
    from llmscale.checkpoint.shards import header_faults  # noqa: PLC0415

    if not deep and (layout or own_layout):
        raise InputError([Problem("KEY=VALUE", " ".join(layout or ["--own-layout"]), "goes with --deep")])
    console, faulty = Console(), False
    for found in _find(target, root):
        faults = verify(found)
        if found.manifest is not None and not faults:
            faults = stored_faults(found.manifest.tensors) + header_faults(found.path, found.manifest)
        if found.state != "committed" and found.reason not in faults:
            faults.insert(0, f"{found.state}: {found.reason}")
        verdict = Text("damaged", "red") if faults else Text("sound", "green")
        if deep and not faults:
            faults = _deep_faults(found, layout or [], own_layout)
            verdict = (
                Text("not confirmed", "red") if faults else Text("sound, and computes as saved", "green")
            )
        faulty = faulty or bool(faults)
        size = decimal(found.manifest.byte_count) if found.manifest else "unknown size"
        console.print(Text.assemble(f"step {found.step}, {size}: ", verdict))
        for fault in faults:
            console.print(f"  {fault}", markup=False, highlight=False)
    if faulty:
        raise typer.Exit(1)


def _deep_faults(found: Checkpoint, layout: list[str], own_layout: bool) -> list[str]:
    """Why the stored fingerprint does not confirm the weights, of a checkpoint whose bytes are sound."""
    silence_import_warnings()
    from llmscale.run.deep_verify import plan_check  # noqa: PLC0415 -- loads Megatron too
    from llmscale.run.rank_team import RanksFailed  # noqa: PLC0415

    assert found.manifest is not None
    check = plan_check(found.path, found.manifest, layout, own_layout)
    if isinstance(check, str):
        return [check]
    try:
        return check.faults()
    except (CheckpointError, RanksFailed) as error:
        return [str(error)]


def _find(target: Path, root: Path) -> list[Checkpoint]:
    try:
        found = locate(target if target.exists() or not (root / target).is_dir() else root / target)
    except CheckpointError as error:
        raise InputError([Problem("RUN|CHECKPOINT", target, str(error))]) from error
    # A single checkpoint is judged by the history of the run that it lies in, too.
    return [inspect(one.path, read_epochs(one.path.parent)) for one in found]


def _best_step(stored: list[Checkpoint]) -> int | None:
    """Step of the lowest validation loss, as the newest committed checkpoint knows it."""
    known = [found.manifest.progress for found in stored if found.state == "committed" and found.manifest]
    return best_step(known[-1]) if known else None


def _row(found: Checkpoint) -> tuple[str | Text, ...]:
    faults = size_faults(found)
    state = "damaged" if faults else found.state
    reason = "; ".join(faults) or found.reason
    text = Text(f"{state}: {reason}" if reason else state, COLORS[state])
    manifest = found.manifest
    if manifest is None:
        return "", "", "", "", text
    layout = manifest.description.get("layout", "")
    if isinstance(layout, dict):
        # What is on, and how wide: "tensor 2, sequence, data 4".
        wide = {key: value for key, value in layout.items() if value not in (False, 1) or value is True}
        parts = [key if value is True else f"{key} {value}" for key, value in wide.items()]
        layout = ", ".join(parts) or "one rank"
    return decimal(manifest.byte_count), _age(manifest.saved_at), str(len(manifest.shards)), str(layout), text


def _age(saved_at: float) -> str:
    seconds = max(0.0, time.time() - saved_at)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
