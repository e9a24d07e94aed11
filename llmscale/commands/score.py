"""`llmscale score`: what a reward model gives to answers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmscale.checkpoint.errors import CheckpointError
from llmscale.commands.quiet import silence_import_warnings
from llmscale.config.problems import InputError, Problem
from llmscale.data.files import replace_file
from llmscale.data.records import RecordSource, record_source
from llmscale.data.sources import BadText
from llmscale.run.target import Target, find_target
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server

if TYPE_CHECKING:
    from llmscale.run.score_records import Tally

console = Console(stderr=True)


def score(
    target: Annotated[
        str,
        typer.Argument(help="Run, checkpoint, or Hugging Face folder of a reward model.", show_default=False),
    ],
    records: Annotated[
        Path,
        typer.Argument(help="Answers: a file of records as `task: reward` reads them, or without labels."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: one JSON object a record.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field", help="What a field is called in the records: prompt=question.", metavar="NAME=FIELD"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers that are scored at once.")] = 16,
    tensor: Annotated[int, typer.Option(min=1, help="Ranks that share each matrix.")] = 1,
    pipeline: Annotated[int, typer.Option(min=1, help="Stages that the layers are cut into.")] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder, where the run's config names none or it has moved.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Of a run with PEFT: where its base is, if it has moved.")
    ] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
) -> None:
    """Let a reward model score answers, and tell how often it agrees with records that say which is better.

    The output is whole or absent: the answers of each record, the best first, with their scores.
    """
    source = _source(records)
    fields = _fields(field or [])
    found = find_target(target, root, tokenizer, tensor, pipeline, base, scores=True)
    prepare_environment(found.ranks, found.config.cluster.threads)
    silence_import_warnings()
    if found.ranks > 1:
        start_server(["llmscale.run.reward_model"])
    from llmscale.run.rank_team import RanksFailed  # noqa: PLC0415 -- loads torch

    try:
        tally = _score(found, source, fields, output, batch)
    except BadText as error:
        raise InputError([Problem("RECORDS", records, str(error))]) from None
    except (CheckpointError, RanksFailed) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    table = Table(title=f"Scores of {records.name}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in tally.rows():
        table.add_row(name, value)
    Console().print(table)


def _score(
    target: Target, source: RecordSource, fields: dict[str, str], output: Path | None, batch: int
) -> "Tally":
    from llmscale.data.chat.encode import chat_encoder  # noqa: PLC0415 -- loads transformers
    from llmscale.run.reward_model import open_reward_model  # noqa: PLC0415 -- loads Megatron
    from llmscale.run.score_records import RecordScorer, Scored, Tally  # noqa: PLC0415

    chat, tally = chat_encoder(target.config, target.tokenizer, target.positions), Tally()
    lines: list[bytes] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        open_reward_model(target) as model,
    ):
        task = progress.add_task("scoring", total=len(source))
        scorer = RecordScorer(model, chat, fields, target.positions, batch)
        for line, one in scorer.scored(source):
            tally.add(line, one)
            progress.advance(task)
            if output is not None and isinstance(one, Scored):
                lines.append(json.dumps(one.as_json()).encode() + b"\n")
    if output is not None:
        with replace_file(output) as file:
            file.writelines(lines)
    return tally


def _source(records: Path) -> RecordSource:
    try:
        return record_source(records)
    except BadText as error:
        raise InputError([Problem("RECORDS", records, str(error))]) from None


def _fields(given: list[str]) -> dict[str, str]:
    problems = [
        Problem("--field", one, "is no NAME=FIELD, such as prompt=question")
        for one in given
        if not all(one.partition("="))
    ]
    if problems:
        raise InputError(problems)
    return {name: called for name, _, called in (one.partition("=") for one in given)}
