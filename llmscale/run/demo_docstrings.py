"""Instruction data from source code: what a function does, by its docstring, and its code, asked for by it.

Each documented function gives up to two conversations, `{messages}`: its head with the question what it
does, answered by the first paragraph of its docstring; and its docstring with the wish to write it, answered
by its code.
"""

import ast
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmscale.data.files import replace_file

VALIDATION_FILES = 10
"""One file of so many is for validation: its functions are not trained on."""
SHORTEST_SUMMARY, LONGEST_SUMMARY = 15, 300
LONGEST_HEAD, LONGEST_CODE = 160, 500
"""Characters: a conversation fits into a row of 256 tokens."""

Conversation = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class DocumentedFunction:
    head: str
    """`def name(arguments):`"""
    summary: str
    """The first paragraph of its docstring, as one line."""
    code: str
    """The whole function, without comments and docstring."""


def write_docstrings(files: Iterable[Path], folder: Path) -> dict[str, int]:
    """Write `train.jsonl` and `validation.jsonl`, each conversation once and in one of them; returns how many
    each has."""
    training: dict[str, None] = {}
    validation: dict[str, None] = {}
    for file in files:
        text = file.read_text("utf-8", "replace")
        found = training if split_of(text) == "train" else validation
        for function in documented_functions(text):
            found |= {json.dumps(conversation): None for conversation in conversations(function)}
    splits = {"train": list(training), "validation": [line for line in validation if line not in training]}
    for split, lines in splits.items():
        with replace_file(folder / f"{split}.jsonl") as output:
            output.writelines(line.encode() + b"\n" for line in lines)
    return {split: len(lines) for split, lines in splits.items()}


def split_of(text: str) -> Literal["train", "validation"]:
    """Of the functions of a file."""
    chosen = int(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(), 16) % VALIDATION_FILES
    return "train" if chosen else "validation"


def documented_functions(text: str) -> Iterator[DocumentedFunction]:
    """The functions of a source file that say what they do; none where it is no Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of doubtful escapes and the like
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        summary = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if not SHORTEST_SUMMARY <= len(summary) <= LONGEST_SUMMARY:
            continue
        node.body, node.decorator_list = node.body[1:] or [ast.Pass()], []
        code = ast.unparse(node)
        yield DocumentedFunction(code.split("\n")[0], summary, code)


def conversations(function: DocumentedFunction) -> Iterator[Conversation]:
    """What is asked of the function and what is answered, where both are short enough."""
    if len(function.head) <= LONGEST_HEAD:
        yield _conversation(f"What does this function do?\n{function.head}", function.summary)
        if len(function.code) <= LONGEST_CODE:
            question = f"Write this function.\n{function.head}\n{function.summary}"
            yield _conversation(question, function.code)


def _conversation(question: str, answer: str) -> Conversation:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
