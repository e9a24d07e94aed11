"""Preferences from source code: which of two summaries is a function's own, and which is another's.

All are real docstrings of one library, and each stands among the better and among the worse ones: neither
length nor style nor the summary itself tells which it is, only the function's head does.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from llmscale.data.files import replace_file
from llmscale.run.demo_docstrings import LONGEST_HEAD, documented_functions, split_of, what_it_does

PAIRS = {"train": 1000, "validation": 200}
"""At most."""


def write_preferences(files: Iterable[Path], folder: Path) -> dict[str, int]:
    """Write `train.jsonl` and `validation.jsonl` with records {prompt, chosen, rejected}, lists of messages;
    returns how many each has. A function is in one of the two, and so are all that share its question."""
    summaries: dict[str, dict[str, str]] = {"train": {}, "validation": {}}
    for file in files:
        text = file.read_text("utf-8", "replace")
        found = summaries[split_of(text)]
        for function in documented_functions(text):
            if len(function.head) <= LONGEST_HEAD:
                found.setdefault(what_it_does(function), function.summary)
    trained_on = summaries["train"].keys()
    summaries["validation"] = {
        question: summary
        for question, summary in summaries["validation"].items()
        if question not in trained_on
    }
    return {
        split: _write(folder / f"{split}.jsonl", found, PAIRS[split]) for split, found in summaries.items()
    }


def _write(path: Path, summaries: dict[str, str], most: int) -> int:
    """In an order that is random and the same everywhere, in which the next function's summary, if it says
    something else, is the worse one."""
    questions = sorted(summaries, key=lambda question: hashlib.sha256(question.encode()).digest())
    others = [*questions[1:], *questions[:1]]
    pairs = [
        (question, summaries[question], summaries[other])
        for question, other in zip(questions, others)
        if summaries[question] != summaries[other]
    ][:most]
    with replace_file(path) as file:
        file.writelines(json.dumps(_record(*pair)).encode() + b"\n" for pair in pairs)
    return len(pairs)


def _record(question: str, chosen: str, rejected: str) -> dict[str, list[dict[str, str]]]:
    said = {
        "prompt": ("user", question),
        "chosen": ("assistant", chosen),
        "rejected": ("assistant", rejected),
    }
    return {name: [{"role": role, "content": content}] for name, (role, content) in said.items()}
