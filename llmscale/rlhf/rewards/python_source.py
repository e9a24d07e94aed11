"""Whether a text is Python that does something. Needs the standard library alone: it runs in a subprocess.

"Hello" is a program to Python's parser, and so are `x = 1`, a comment and `pass`. What counts here is at
least one statement with an effect, and no more of the same than a person would write.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

from llmscale.rlhf.rewards.python_repeats import repeats

Verdict = Literal["good", "empty", "unparsable", "trivial", "repeated"]

FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = ("", "python", "py", "python3")

_DOES = (ast.Call, ast.Yield, ast.YieldFrom, ast.Await, ast.NamedExpr)
_MAKES = (
    *(ast.BinOp, ast.BoolOp, ast.Compare, ast.Subscript, ast.Attribute, ast.Lambda, ast.IfExp, ast.JoinedStr),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


def verdicts(programs: Sequence[str]) -> list[Verdict]:
    return [verdict(program) for program in programs]


def verdict(program: str) -> Verdict:
    """What a program is."""
    if not program.strip():
        return "empty"
    try:
        return _verdict(program, parsed(program))
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return "unparsable"


def _verdict(program: str, tree: ast.Module) -> Verdict:
    if not tree.body:
        return "empty"  # comments
    if not any(map(_acts, tree.body)):
        return "trivial"
    return "repeated" if repeats(program, tree) else "good"


def parsed(program: str) -> ast.Module:
    """
    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError, OverflowError: it is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in literals
        tree = ast.parse(program)
        compile(tree, "<answer>", "exec", dont_inherit=True)  # `return` outside of a function, …
    return tree


def program_of(answer: str) -> str:
    """The first block of Python between fences, or else the whole answer, without the blanks that a chat
    template leaves before it."""
    for language, code in FENCE.findall(answer):
        if language.lower() in PYTHON:
            return textwrap.dedent(code)
    program = textwrap.dedent(answer.strip("\n"))
    first, newline, rest = program.partition("\n")
    # One blank before the first line alone; an indented body keeps its indentation, and does not parse.
    return first.removeprefix(" ") + newline + rest


def _acts(statement: ast.stmt) -> bool:
    """It does something, or something within it does."""
    if isinstance(statement, ast.Expr):
        return any(isinstance(node, _DOES) for node in ast.walk(statement.value))
    if isinstance(statement, (ast.AugAssign, ast.Delete, ast.Assert)):
        return True
    if isinstance(statement, ast.Raise):
        return statement.exc is not None
    if isinstance(statement, (ast.Return, ast.Assign, ast.AnnAssign)):
        return statement.value is not None and _computes(statement.value)
    return any(map(_acts, _inner(statement)))


def _computes(value: ast.expr) -> bool:
    """It is more than names and literals."""
    return any(isinstance(node, (*_DOES, *_MAKES)) for node in ast.walk(value))


def _inner(statement: ast.stmt) -> Iterator[ast.stmt]:
    """The statements of its blocks."""
    for node in ast.iter_child_nodes(statement):
        if isinstance(node, ast.stmt):
            yield node
        elif isinstance(node, (ast.ExceptHandler, ast.match_case)):
            yield from node.body
