"""`llmscale checkpoint export` and `import`: to and from Hugging Face folders."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.huggingface_folder import is_hugging_face_folder
from llmscale.config.problems import InputError, Problem

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

console = Console(stderr=True)
Tokenizer = Annotated[
    Path | None, typer.Option(help="Tokenizer folder, where it is not the one that belongs to the model.")
]


class ExportType(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def export_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|CHECKPOINT", help="A run folder or name, or one checkpoint.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    dtype: Annotated[ExportType, typer.Option(help="Type of the weights; fp32 is exact.")] = ExportType.fp32,
    max_shard_size: Annotated[str, typer.Option(help="Largest file, such as 5GB or 500MiB.")] = "5GB",
    tokenizer: Tokenizer = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Of a run with PEFT: base and update in one."),
    ] = False,
    base: Annotated[
        Path | None, typer.Option(help="Of a run with PEFT: where its base is, if it has moved.")
    ] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
) -> None:
    """Write a folder that transformers loads: safetensors, config.json, generation_config.json, tokenizer.

    Of a run with PEFT it is the adapter alone, as the peft library has it, where no --merge is given.

    The weights are verified first, and read and written in pieces of 8 MiB, however large the model is.
    """
    most = parse_size(max_shard_size)
    with _failures():
        from llmscale.run.export import plan_export  # noqa: PLC0415 -- loads torch

        plan = plan_export(target, root, tokenizer, dtype.value, merge, base)
        with _bar("exporting", plan.byte_count) as on_bytes:
            plan.write(out, most, on_bytes)
    print(f"{plan.checkpoint} is now in {out}")
    if plan.base is not None and not is_hugging_face_folder(plan.base.path):
        message = f"It is for {plan.base.path}, which transformers needs exported, too."
        console.print(message, style="yellow", markup=False)
    if plan.tokenizer is None:
        console.print("The run names no tokenizer, so the folder has none.", style="yellow")
    elif plan.padding is not None and plan.padding.id is None:
        message = (
            "The tokenizer has no token that could pad: what ends an answer is scored, and must not. "
            "transformers takes one answer at a time of this model."
        )
        console.print(message, style="yellow")


def import_command(
    folder: Annotated[Path, typer.Argument(metavar="HF_FOLDER", help="Folder of a Hugging Face model.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    tokenizer: Tokenizer = None,
) -> None:
    """Write a run folder with the model's weights as a committed checkpoint, its config and its tokenizer.

    It serves `train.init_from`, `generate`, `verify` and `export` as a run's folder does. Where the
    tokenizer has more tokens than the model has rows, the new rows are the mean of the old ones.
    """
    with _failures():
        from llmscale.run.import_folder import plan_import  # noqa: PLC0415 -- loads torch

        plan = plan_import(folder, out, tokenizer)
        with _bar("importing", plan.byte_count) as on_bytes:
            plan.write(on_bytes)
    print(f"{folder} is now in {out}")
    if plan.gained_tokens:
        console.print(f"{plan.gained_tokens} tokens were new; their rows are the mean of the others.")
    if plan.tokenizer is None:
        message = "The folder has no tokenizer.json; name a tokenizer where one is needed."
        console.print(message, style="yellow")


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB.

    Raises:
        InputError: it is none.
    """
    match = re.fullmatch(r"(\d+) ?([KMG]i?B)", text)
    if not match or not int(match[1]):
        message = f"is a whole number with a unit: {', '.join(UNITS)}"
        raise InputError([Problem("--max-shard-size", text, message)])
    return int(match[1]) * UNITS[match[2]]


@contextmanager
def _bar(what: str, byte_count: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=byte_count)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _failures() -> Iterator[None]:
    """What went wrong with files, in one line and with exit code 1."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
