"""The `llmscale` command. What a command needs is imported when that command is called."""

import importlib
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from llmscale.config.problems import InputError, Problem
from llmscale.control.exit_codes import EXIT_BAD_INPUT

COMMANDS = {
    "train": ("llmscale.commands.train:train", "Train here, in the foreground; resume where it was."),
    "submit": (
        "llmscale.commands.submit:submit",
        "Hand a run or several to SLURM, Ray or this machine.",
    ),
    "status": ("llmscale.commands.status:status", "How runs stand: step, loss, speed, failures."),
    "logs": ("llmscale.commands.logs:logs", "What the ranks of a run have written."),
    "cancel": ("llmscale.commands.cancel:cancel", "Ask a run to save and stop."),
    "plan": ("llmscale.commands.plan:plan", "What a config needs: ranks, memory, tokens."),
    "report": ("llmscale.commands.report:report", "Curves and tables of runs as one HTML file and pictures."),
    "generate": ("llmscale.commands.generate:generate", "Let a trained model write."),
    "score": ("llmscale.commands.score:score", "Let a reward model score answers."),
    "data": ("llmscale.commands.data:app", "Train a tokenizer, tokenize text, look at samples."),
    "checkpoint": ("llmscale.commands.checkpoint:app", "List, verify and exchange checkpoints."),
    "config": ("llmscale.commands.config:app", "The schema, and configs with everything filled in."),
    "cluster": ("llmscale.commands.cluster:app", "What launchers start on the nodes of a job."),
    "doctor": ("llmscale.commands.doctor:doctor", "What is installed here, and which fast paths are on."),
}
"""Name -> where the command is (a function, or a typer app of several), and a line of help."""


class LazyGroup(TyperGroup):
    """Lists its commands from the table, and imports one only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        return TyperCommand(cmd_name, help=entry[1]) if entry else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else command, rest


def load_command(name: str) -> Any:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        found.command(name)(function)
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def llmscale() -> None:
    """Pretrain and align language models, from one laptop CPU to a cluster."""


def main() -> None:
    """Run the command line; bad input ends with exit code 2 and every problem listed."""
    try:
        app()
    except InputError as error:
        print_problems(error.problems)
        sys.exit(EXIT_BAD_INPUT)


def print_problems(problems: list[Problem]) -> None:
    console = Console(stderr=True)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    console.print(Text(f"{count}, nothing was started:", style="bold red"))
    if not console.is_terminal:
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for problem in problems:
        value = "" if problem.value in (None, "") else f" = {problem.value}"
        table.add_row(Text(f"{problem.key}{value}"), Text(problem.message))
    console.print(table)
