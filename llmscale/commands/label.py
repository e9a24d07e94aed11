"""`llmscale data label`: preferences from a judge that is a language model."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmscale.checkpoint.errors import CheckpointError
from llmscale.config.problems import InputError
from llmscale.control.exit_codes import EXIT_FAILED, EXIT_SAVED

if TYPE_CHECKING:
    from llmscale.data.label.ask import OnAnswers
    from llmscale.data.label.options import LabelConfig, RespondentSection, WordsSection
    from llmscale.data.label.respondent import OpenRespondent, Respondent
    from llmscale.data.label.results import Results

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

console = Console(stderr=True)


def label(
    config: Annotated[
        Path,
        typer.Argument(
            help="What to label, and by whom: configs/label/helpful.yaml, or a file like it.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, such as records=my/prompts.jsonl."),
    ] = None,
) -> None:
    """Let a language model judge answers, and write its preferences to train on.

    Each answer of the judge is kept as it comes, and paid for once: the same command goes on where it
    stopped.

    Exit codes: 0 done, 1 the judge gives no answers, 2 bad input, 75 stopped, or the budget is spent.
    """
    from llmscale.data.label.ask import Unfinished  # noqa: PLC0415 -- --help stays fast
    from llmscale.data.label.label import ANSWERS, label  # noqa: PLC0415
    from llmscale.data.label.options import load_label_config  # noqa: PLC0415
    from llmscale.data.label.respondent import RespondentFailed  # noqa: PLC0415
    from llmscale.data.label.results import write_results  # noqa: PLC0415

    options = load_label_config(config, overrides or [])
    stop = threading.Event()
    try:
        with _stopping(stop), _progress() as progress:
            results = label(options, _opener(stop), stop, progress)
    except (Unfinished, RespondentFailed) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        kept = f"Every answer so far is in {options.output / ANSWERS}; the same command goes on from there."
        console.print(kept, style="dim", markup=False, highlight=False)
        raise typer.Exit(EXIT_SAVED if isinstance(error, Unfinished) else EXIT_FAILED) from None
    found = write_results(options, results)
    _print_summary(options, results, found)


def _opener(stop: threading.Event) -> "OpenRespondent":
    from llmscale.data.label.endpoint import Endpoint  # noqa: PLC0415 -- --help stays fast
    from llmscale.data.label.options import JudgeSection  # noqa: PLC0415
    from llmscale.data.label.respondent import RespondentFailed  # noqa: PLC0415

    def open_respondent(section: "RespondentSection", words: "WordsSection | None") -> "Respondent":
        if section.endpoint is not None:
            return Endpoint(section, words, stop)
        try:
            return _model_here(section, words)
        except InputError as error:
            name = "judge" if isinstance(section, JudgeSection) else "candidates"
            keys = {"TARGET": f"{name}.model", "--tokenizer": f"{name}.tokenizer"}
            problems = [replace(one, key=keys.get(one.key, one.key)) for one in error.problems]
            raise InputError(problems) from None
        except CheckpointError as error:
            raise RespondentFailed(f"{section.model}: {error}") from None

    return open_respondent


def _model_here(section: "RespondentSection", words: "WordsSection | None") -> "Respondent":
    """
    Raises:
        InputError: there is no such model, or it cannot be used so.
    """
    from llmscale.commands.quiet import silence_import_warnings  # noqa: PLC0415 -- before torch is loaded
    from llmscale.run.target import find_target  # noqa: PLC0415
    from llmscale.runtime.rank_variables import prepare_environment  # noqa: PLC0415
    from llmscale.runtime.ranks import start_server  # noqa: PLC0415

    found = find_target(str(section.model), section.root, section.tokenizer, section.tensor, section.pipeline)
    prepare_environment(found.ranks, found.config.cluster.threads)
    silence_import_warnings()
    if found.ranks > 1:
        start_server(["llmscale.run.generate"])
    from llmscale.run.respondent import ModelHere  # noqa: PLC0415 -- loads torch

    return ModelHere(section, words, found)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """A signal lets what is under way finish; a second one ends the command at once."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    ours = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress():
    from llmscale.data.label.label import Progress as Listener  # noqa: PLC0415 -- --help stays fast

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def listen(name: str) -> "OnAnswers":
            task: list[TaskID] = []

            def show(settled: int, count: int) -> None:
                if not task:
                    task.append(bars.add_task(name, total=count))
                bars.update(task[0], completed=settled, total=count)

            return show

        yield Listener(listen("candidates"), listen("verdicts"))


def _print_summary(config: "LabelConfig", results: "Results", found: dict) -> None:
    table = Table(title=f"Preferences in {config.output}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, count in found["counts"].items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    if found["agreement"] and found["agreement"]["accuracy"] is not None:
        table.add_row("agrees with humans", f"{100 * found['agreement']['accuracy']:.1f} %")
    if found["position"]["first_chosen"] is not None:
        table.add_row("chose the first shown", f"{100 * found['position']['first_chosen']:.1f} %")
    for purpose, cost in results.costs.items():
        if cost.requests:
            table.add_row(f"paid for the {purpose}", f"{cost.requests:,} answers, {cost.tokens:,} tokens")
    Console().print(table)
