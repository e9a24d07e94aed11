"""`llmscale data`: train a tokenizer, tokenise text, look at what came out, let a model judge answers."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmscale.commands.label import label

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("label")(label)

INPUTS_HELP = "Files (.txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet), folders, or hf:NAME[:SPLIT]."
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help=INPUTS_HELP, show_default=False)]
Suffixes = Annotated[
    list[str] | None,
    typer.Option("--suffix", help="Take files of folders that end so, such as .py. Repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="Leave out folders of this name. Repeatable.")
]
TextKey = Annotated[str, typer.Option("--text-key", help="Field or column that holds the text.")]


@app.command("tokenizer")
def tokenizer_command(
    inputs: Inputs,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, absent or empty.")],
    vocabulary_size: Annotated[
        int, typer.Option("--vocabulary-size", min=360, help="Number of tokens.")
    ] = 32000,
    kind: Annotated[str, typer.Option("--kind", help="bpe or unigram.")] = "bpe",
    text_key: TextKey = "text",
    suffix: Suffixes = None,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample of text.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads. Left out: all cores.", min=1)] = None,
) -> None:
    """Train a SentencePiece tokenizer and write it as a Hugging Face folder."""
    from llmscale.config.problems import InputError, Problem  # noqa: PLC0415 -- --help stays fast
    from llmscale.data.sources import BadText, SourceOptions, parts_of_sources  # noqa: PLC0415
    from llmscale.data.train_tokenizer import train_tokenizer  # noqa: PLC0415

    if kind not in ("bpe", "unigram"):
        raise InputError([Problem("--kind", kind, "must be bpe or unigram")])
    options = SourceOptions(text_key, tuple(suffix or ()), tuple(exclude or ()))
    parts = parts_of_sources(inputs, options)
    texts = (text for part in parts for text in part.documents() if text)
    started = time.monotonic()
    try:
        trained = train_tokenizer(
            texts, output, vocabulary_size, kind, seed=seed, threads=threads or os.cpu_count() or 1
        )
    except BadText as error:
        raise InputError([Problem("INPUT", "", str(error))]) from None
    _print_table(
        f"Tokenizer {output}",
        [
            ("kind", kind),
            ("tokens", f"{trained.vocabulary_size:,}"),
            ("trained on", f"{trained.trained_characters:,} characters"),
            ("agrees with SentencePiece on", f"{trained.checked_texts:,} texts of them"),
            ("seconds", f"{time.monotonic() - started:.1f}"),
        ],
    )


@app.command("tokenize")
def tokenize_command(
    inputs: Inputs,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", "-t", help="Hugging Face tokenizer folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Corpus to write, without .bin and .idx.")],
    workers: Annotated[int | None, typer.Option(help="Processes. Left out: all cores.", min=1)] = None,
    text_key: TextKey = "text",
    suffix: Suffixes = None,
    exclude: Exclude = None,
) -> None:
    """Turn text into a corpus to train on; goes on where an interrupted run stopped."""
    from llmscale.data.sources import SourceOptions  # noqa: PLC0415 -- --help stays fast
    from llmscale.data.tokenize import PartCounts, tokenize  # noqa: PLC0415

    options = SourceOptions(text_key, tuple(suffix or ()), tuple(exclude or ()))
    started = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def show(done: int, total: int, counts: PartCounts) -> None:
            rate = counts.tokens / max(time.monotonic() - started, 1e-9)
            bar.update(
                task,
                completed=done,
                total=total,
                description=f"{counts.tokens:,} tokens, {rate:,.0f} a second",
            )

        result = tokenize(
            inputs, tokenizer, output, workers=workers or os.cpu_count() or 1, options=options, progress=show
        )
    seconds, info = time.monotonic() - started, result.info
    rows = [
        ("documents", f"{info.documents:,}"),
        ("tokens", f"{info.tokens:,}"),
        ("tokens/s", f"{info.tokens / seconds:,.0f}"),
        ("bytes/token", f"{info.text_bytes / info.tokens:.2f}"),
        ("seconds", f"{seconds:.1f}"),
    ]
    if result.resumed_parts:
        rows.append(("parts of an earlier run", f"{result.resumed_parts:,} (tokens/s counts them too)"))
    if result.empty or result.not_text:
        rows.append(("left out", f"{result.empty:,} empty and {result.not_text:,} that are not UTF-8 text"))
    _print_table(f"Corpus {output}", rows)


@app.command("inspect")
def inspect_command(
    target: Annotated[
        Path,
        typer.Argument(
            help="A config (.yaml), or a corpus: its path without .bin and .idx.", show_default=False
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-t", help="Of a corpus: the tokenizer that made it.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=0, help="Samples to show.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Of a config: write all of it as a page, too.")] = None,
    sequence_length: Annotated[int, typer.Option(min=1, help="Of a corpus: tokens of a sample.")] = 256,
    seed: Annotated[int, typer.Option(help="Of a corpus: seed of the order.")] = 0,
) -> None:
    """Show what is trained on: figures, what is suspicious, and samples with the tokens that are learned."""
    from llmscale.config.problems import InputError, Problem  # noqa: PLC0415 -- --help stays fast

    if target.suffix in (".yaml", ".yml"):
        _inspect_config(target, overrides or [], samples, html)
    elif tokenizer is None:
        raise InputError([Problem("--tokenizer", None, "says which tokens a corpus holds; name its folder")])
    else:
        _inspect_corpus(target, tokenizer, samples, sequence_length, seed)


def _inspect_corpus(corpus: Path, tokenizer: Path, samples: int, sequence_length: int, seed: int) -> None:
    from llmscale.data.inspect import corpus_facts, read_samples  # noqa: PLC0415 -- imports Megatron, seconds

    console = Console()
    _print_table(f"Corpus {corpus}", corpus_facts(corpus, tokenizer))
    for number, spans in enumerate(read_samples(corpus, tokenizer, samples, sequence_length, seed)):
        console.rule(f"sample {number}: labels that count in green, others crossed out")
        for text, counts in spans:
            console.print(
                text, style="green" if counts else "red strike", end="", markup=False, highlight=False
            )
        console.print()


def _inspect_config(path: Path, overrides: list[str], samples: int, html: Path | None) -> None:
    from llmscale.config.load import load_config  # noqa: PLC0415 -- --help stays fast
    from llmscale.data.files import replace_file  # noqa: PLC0415
    from llmscale.data.inspect_examples import inspect_config  # noqa: PLC0415
    from llmscale.data.inspect_html import inspection_page  # noqa: PLC0415
    from llmscale.data.inspect_terminal import show_inspection  # noqa: PLC0415

    found = inspect_config(load_config(path, overrides), samples)
    title = f"Data of {path}"
    _print_table(title, found.facts)
    show_inspection(found, Console())
    if html is not None:
        with replace_file(html) as file:
            file.write(inspection_page(title, found).encode())


def _print_table(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
