"""Data to fine-tune on, from text that every machine has: Python's standard library.

`python -m llmscale.run.demo_data` writes

    demo/sft/{train,validation}.jsonl           conversations about functions, from their docstrings
    demo/classify/{train,validation}.jsonl      which package a piece of source comes from
    demo/preferences/{train,validation}.jsonl   which of two answers does what was asked
    demo/prompts/{train,validation}.jsonl       beginnings of functions, to be gone on with
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llmscale.data.files import replace_file
from llmscale.run.demo_docstrings import write_docstrings
from llmscale.run.demo_preferences import write_preferences
from llmscale.run.demo_prompts import write_prompts

FOLDER = Path("demo")
NOT_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test")
"""Folders of Python's installation that are someone else's code, or data for tests."""

PACKAGES = 8
FEWEST_FILES = 10
"""Of a package: with fewer, one file in the validation data would be most of it."""
TABLES = ("encodings", "pydoc_data")
"""Packages that are tables more than code."""
PIECE_CHARACTERS, SHORTEST_PIECE = 800, 300
MOST_PIECES = {"train": 300, "validation": 80}
"""Of a package, so that no label is much more frequent than another."""
VALIDATION_SHARE = 0.2
"""Of a package's files, by size."""


def write_classification(folder: Path) -> dict[str, int]:
    """Write `train.jsonl` and `validation.jsonl` with records {text, label, file}; returns their counts.

    A piece is some whole lines of a file; a file's pieces are all in the same one of the two.
    """
    counts: dict[str, int] = {}
    packages = largest_packages(Path(sysconfig.get_path("stdlib")))
    for split in ("train", "validation"):
        records = [record for package in packages for record in _records(package, split)]
        with replace_file(folder / f"{split}.jsonl") as file:
            for record in sorted(records, key=lambda record: _shuffled(record["text"])):
                file.write(json.dumps(record).encode() + b"\n")
        counts[split] = len(records)
    return counts


def largest_packages(library: Path) -> list[Path]:
    """Those with the most source among the ones with enough files, by name."""
    sizes: dict[Path, int] = {}
    for initial in library.glob("*/__init__.py"):
        package = initial.parent
        files = source_files(package)
        if len(files) >= FEWEST_FILES and package.name not in (*NOT_LIBRARY, *TABLES):
            sizes[package] = sum(file.stat().st_size for file in files)
    return sorted(sorted(sizes, key=lambda package: (-sizes[package], package.name))[:PACKAGES])


def source_files(package: Path) -> list[Path]:
    return sorted(
        file
        for file in package.rglob("*.py")
        if not any(part in NOT_LIBRARY for part in file.relative_to(package).parts)
    )


def _records(package: Path, split: str) -> list[dict[str, str]]:
    found = [
        {"text": piece, "label": package.name, "file": str(file.relative_to(package.parent))}
        for file in _files_of_split(package, split)
        for piece in pieces(file.read_text("utf-8", "replace"))
    ]
    return sorted(found, key=lambda record: _shuffled(record["text"]))[: MOST_PIECES[split]]


def _files_of_split(package: Path, split: str) -> Iterator[Path]:
    """Files in an order that is random and the same everywhere; the first share of them validates."""
    files = sorted(source_files(package), key=lambda file: _shuffled(str(file.relative_to(package))))
    size = sum(file.stat().st_size for file in files)
    before = 0
    for file in files:
        if (split == "validation") == (before < VALIDATION_SHARE * size):
            yield file
        before += file.stat().st_size


def pieces(text: str) -> Iterator[str]:
    """Whole lines, together about `PIECE_CHARACTERS`; what is left at the end, if it is long enough."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        lines.append(line)
        if sum(map(len, lines)) >= PIECE_CHARACTERS:
            yield "".join(lines)
            lines = []
    if sum(map(len, lines)) >= SHORTEST_PIECE:
        yield "".join(lines)


def _shuffled(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def write_demo_data() -> None:
    """Write all of it, and say what it is."""
    library = source_files(Path(sysconfig.get_path("stdlib")))
    for folder, counts in (
        (FOLDER / "sft", write_docstrings(library, FOLDER / "sft")),
        (FOLDER / "classify", write_classification(FOLDER / "classify")),
        (FOLDER / "preferences", write_preferences(library, FOLDER / "preferences")),
        (FOLDER / "prompts", write_prompts(library, FOLDER / "prompts")),
    ):
        print(f"{folder}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))


if __name__ == "__main__":
    write_demo_data()
