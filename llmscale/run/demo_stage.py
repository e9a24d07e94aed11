"""How the demo shows itself: headings, commands as a user types them, and what comes of them."""

import shlex
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

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
        DemoFailed: it did not end with exit code 0.
    """
    show(arguments)
    code = subprocess.run(command(arguments), check=False).returncode
    if code:
        raise DemoFailed(f"`llmscale {shlex.join(arguments)}` ended with exit code {code}")


def show(arguments: Sequence[str]) -> None:
    console.print(f"[bold cyan]$ llmscale {escape(shlex.join(arguments))}", soft_wrap=True, highlight=False)


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "llmscale", *arguments]
