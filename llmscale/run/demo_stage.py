"""How the demo shows itself: headings, commands as a user types them, and what comes of them."""

import shlex
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from llmscale.control.exit_codes import EXIT_SAVED

console = Console()


class DemoFailed(Exception):
    """A command did not do what the demo shows."""


def stage(number: str, title: str) -> None:
    console.print()
    console.print(Rule(f"[bold]{number} · {escape(title)}", align="left"))


def once(made: bool, *arguments: str) -> None:
    """Run a command whose result the demo keeps, unless it is there already."""
    if made:
        console.print("[dim]there from an earlier demo; `rm -r demo` to make it again[/]")
    else:
        llmscale(*arguments)


def llmscale(*arguments: str) -> None:
    """Run `llmscale` with `arguments`, its output on this terminal.

    Raises:
        DemoFailed: it did not end with exit code 0, or a person has pressed Ctrl-C.
    """
    show(arguments)
    typed = f"llmscale {shlex.join(arguments)}"
    # Not `subprocess.run`, which kills what does not leave at once on Ctrl-C: training saves first.
    with subprocess.Popen(command(arguments)) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the command, too
            code = process.wait()
            way_on = "; the same command goes on from there" if code == EXIT_SAVED else ""
            raise DemoFailed(f"Ctrl-C; `{typed}` ended with exit code {code}{way_on}") from None
    if code:
        raise DemoFailed(f"`{typed}` ended with exit code {code}")


def show(arguments: Sequence[str]) -> None:
    console.print(f"[bold cyan]$ llmscale {escape(shlex.join(arguments))}", soft_wrap=True, highlight=False)


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "llmscale", *arguments]
