"""Preferences from source code: the answer that does what was asked above the one that does something else.

A function is asked about twice, what it does and how it is written, and each time the answer to the other
question is the worse one. Each answer is the better one once and the worse one once: neither length nor style
nor the answer itself tells which it is, only the question does.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from llmscale.data.files import replace_file
from llmscale.run.demo_docstrings import conversations, documented_functions, split_of

FUNCTIONS = {"train": 500, "validation": 100}
"""At most; of each there are two records."""
LONGEST_CODE = 200
"""Characters: a prompt twice, with its two answers, fits into a row of 256 tokens."""

Record = dict[str, list[dict[str, str]]]


def write_preferences(files: Iterable[Path], folder: Path) -> dict[str, int]:
    """Write `train.jsonl` and `validation.jsonl` with records {prompt, chosen, rejected}, lists of messages;
    returns how many each has. A function is in one of the two, and so are all with its head."""
    found: dict[str, dict[str, list[Record]]] = {"train": {}, "validation": {}}
    for file in files:
        text = file.read_text("utf-8", "replace")
        for function in documented_functions(text):
            turns = [conversation["messages"] for conversation in conversations(function)]
            if len(turns) == 2 and len(function.code) <= LONGEST_CODE:
                found[split_of(text)].setdefault(function.head, _records(*turns))
    for head in found["train"]:
        found["validation"].pop(head, None)
    return {split: _write(folder / f"{split}.jsonl", found[split], most) for split, most in FUNCTIONS.items()}


def _records(*turns: list[dict[str, str]]) -> list[Record]:
    (asked, told), (wished, written) = turns
    return [
        {"prompt": [asked], "chosen": [told], "rejected": [written]},
        {"prompt": [wished], "chosen": [written], "rejected": [told]},
    ]


def _write(path: Path, records: dict[str, list[Record]], most: int) -> int:
    """Of functions in an order that is random and the same everywhere."""
    heads = sorted(records, key=lambda head: hashlib.sha256(head.encode()).digest())[:most]
    chosen = [record for head in heads for record in records[head]]
    with replace_file(path) as file:
        file.writelines(json.dumps(record).encode() + b"\n" for record in chosen)
    return len(chosen)
