"""Fills in the templates of `slurm/`, strictly: nothing is left open, nothing goes in unquoted.

In a template `@NAME@` stands for a value. How it is written depends on what the value is:

- a text: quoted for the shell, `run=@FOLDER@` becomes `run='/data/my runs/first'`;
- `Words`: several texts, each quoted, `(@OPTIONS@)` becomes `(--one '--two=a b')`;
- `Lines`: the line is repeated for each, as they are, and goes where there are none.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDER = re.compile(r"@([A-Z][A-Z0-9_]*)@")

CHECKOUT_TEMPLATES = Path(__file__).parents[2] / "slurm"
INSTALLED_TEMPLATES = Path(__file__).parent / "slurm"


@dataclass(frozen=True)
class Words:
    """Words of a command line."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Lines:
    """Whole lines. Who makes them answers for their quoting."""

    lines: tuple[str, ...]


Value = str | Words | Lines


class TemplateError(Exception):
    """Template and values do not fit each other: a mistake of ours, not of the user."""


def templates_folder() -> Path:
    """The shipped `slurm/`: at the root of a checkout, inside this package in a wheel and in a snapshot."""
    return INSTALLED_TEMPLATES if INSTALLED_TEMPLATES.is_dir() else CHECKOUT_TEMPLATES


def placeholders(template: str) -> set[str]:
    """The names that `template` asks for."""
    return set(PLACEHOLDER.findall(template))


def render(template: str, values: Mapping[str, Value]) -> str:
    """`template` with every placeholder replaced by its value.

    Raises:
        TemplateError: a placeholder has no value, or `Lines` share a line with another placeholder.
    """
    missing = placeholders(template) - set(values)
    if missing:
        raise TemplateError(f"without a value: {', '.join(sorted(missing))}")
    return "".join(_render_line(line, values) for line in template.splitlines(keepends=True))


def _render_line(line: str, values: Mapping[str, Value]) -> str:
    names: list[str] = PLACEHOLDER.findall(line)
    repeated = [value for name in names if isinstance(value := values[name], Lines)]
    if not repeated:
        return PLACEHOLDER.sub(lambda found: _quoted(values[found[1]]), line)
    if len(names) > 1:
        raise TemplateError(f"a line that repeats has one placeholder only: {line.strip()}")
    before, after = PLACEHOLDER.split(line)[::2]
    return "".join(before + text + after for text in repeated[0].lines)


def _quoted(value: Value) -> str:
    if isinstance(value, str):
        return shlex.quote(value)
    assert isinstance(value, Words)
    return shlex.join(value.words)
