"""Prompts from source code: the beginning of a function, which is to be gone on with."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from llmscale.data.files import replace_file
from llmscale.run.demo_docstrings import documented_functions, split_of

FUNCTIONS = {"train": 1000, "validation": 100}
"""At most."""
LONGEST_HEAD = 70
"""Characters: a prompt and its answer fit into 48 tokens."""


def write_prompts(files: Iterable[Path], folder: Path) -> dict[str, int]:
    """Write `train.jsonl` and `validation.jsonl` with records {prompt}, each in one of the two; returns how
    many each has."""
    found: dict[str, set[str]] = {"train": set(), "validation": set()}
    for file in files:
        text = file.read_text("utf-8", "replace")
        heads = {function.head for function in documented_functions(text)}
        found[split_of(text)] |= {head for head in heads if len(head) <= LONGEST_HEAD}
    found["validation"] -= found["train"]
    return {split: _write(folder / f"{split}.jsonl", found[split], most) for split, most in FUNCTIONS.items()}


def _write(path: Path, heads: set[str], most: int) -> int:
    """In an order that is random and the same everywhere."""
    chosen = sorted(heads, key=lambda head: hashlib.sha256(head.encode()).digest())[:most]
    with replace_file(path) as file:
        file.writelines(json.dumps({"prompt": f"{head}\n    return"}).encode() + b"\n" for head in chosen)
    return len(chosen)
