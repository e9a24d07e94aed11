"""Examples that are ready to train on: tokens, which of them are learned, and what is to be told of them.

An example is one text, or a group of documents that are compared: then they are laid end to end, and of each
the length, the role and the margin are kept. A folder of flat files, written once and mapped into memory by
every rank.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from llmscale.data.files import replace_folder

INFO = "info.json"
STARTS, TOKENS, LEARNED, TARGETS = "starts.npy", "tokens.bin", "learned.bin", "targets.npy"
DOCUMENTS = "documents.npy"
DOCUMENT = np.dtype([("example", "<i8"), ("length", "<i8"), ("role", "<i8"), ("margin", "<f8")])
CONTENT = "content"
"""In `INFO`: SHA-256 of all that the other files hold."""


@dataclass(frozen=True)
class Document:
    """A part of a group."""

    length: int
    """Tokens."""
    role: int = 0
    """See `Batch.role_BL`."""
    margin: float = 0.0


@dataclass(frozen=True)
class Example:
    """One text, or one group of them."""

    tokens: np.ndarray
    """int32."""
    learned: np.ndarray
    """bool, one a token: it counts in the loss, where it is the label."""
    target: float | None = None
    """Number of its label, or the number itself (classification); 1 or 0 of the first document of a group
    whose answer was judged alone."""
    documents: tuple[Document, ...] = ()
    """Of a group, whose tokens they are, in order; none: it is one text."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each document."""
        return tuple(document.length for document in self.documents) or (len(self.tokens),)


class ExampleSet:
    """The examples in `folder`.

    Raises:
        OSError, ValueError: it is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.info: dict[str, JsonValue] = json.loads((folder / INFO).read_bytes())
        self._starts = np.load(folder / STARTS, mmap_mode="r")
        self._tokens = _mapped(folder / TOKENS, np.int32, int(self._starts[-1]))
        self._learned = _mapped(folder / LEARNED, np.bool_, int(self._starts[-1]))
        self._targets = _optional(folder / TARGETS)
        self._documents = _optional(folder / DOCUMENTS)
        self._first = None if self._documents is None else _first_documents(self._documents, len(self))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64, tokens of each."""
        return np.diff(self._starts)

    @property
    def has_groups(self) -> bool:
        return self._documents is not None

    @property
    def document_counts(self) -> np.ndarray:
        """int64, documents of each."""
        return np.ones(len(self), np.int64) if self._first is None else np.diff(self._first)

    @property
    def document_count(self) -> int:
        """Of all examples."""
        return int(self.document_counts.sum())

    @property
    def content(self) -> str:
        """SHA-256 of all tokens, of what is learned and of the documents: the same where every document, by
        its number, is the same, so that what is computed of them can be kept under this name."""
        return str(self.info[CONTENT])

    def __getitem__(self, place: int) -> Example:
        start, stop = int(self._starts[place]), int(self._starts[place + 1])
        target = None if self._targets is None else float(self._targets[place])
        target = None if target is None or np.isnan(target) else target
        documents = tuple(
            Document(int(row["length"]), int(row["role"]), float(row["margin"]))
            for row in ([] if self._documents is None else self._documents[self._numbers(place)])
        )
        return Example(self._tokens[start:stop], self._learned[start:stop], target, documents)

    def document_numbers(self, place: int) -> range:
        """Numbers of the documents of an example: 0, 1, 2, … over all examples."""
        numbers = self._numbers(place)
        return range(numbers.start, numbers.stop)

    def _numbers(self, place: int) -> slice:
        if self._first is None:
            return slice(place, place + 1)
        return slice(int(self._first[place]), int(self._first[place + 1]))


def _optional(file: Path) -> np.ndarray | None:
    return np.load(file, mmap_mode="r") if file.is_file() else None


def _first_documents(documents: np.ndarray, examples: int) -> np.ndarray:
    """int64, number of the first document of each example, and after them how many there are."""
    return np.searchsorted(documents["example"], np.arange(examples + 1), side="left")


def _mapped(file: Path, dtype: type[np.generic], length: int) -> np.ndarray:
    """
    Raises:
        ValueError: the file has not `length` numbers.
    """
    if file.stat().st_size != length * np.dtype(dtype).itemsize:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, not those of {length:,} tokens")
    return np.memmap(file, dtype, "r") if length else np.zeros(0, dtype)


def write_examples(
    examples: Iterable[Example],
    folder: Path,
    info: Mapping[str, JsonValue] | Callable[[], Mapping[str, JsonValue]],
) -> None:
    """Write `folder`, which appears whole or not at all.

    Args:
        info: of the examples; a function is asked after the last of them.
    """
    lengths, targets, documents = [], [], []
    with replace_folder(folder) as unfinished:
        with (unfinished / TOKENS).open("wb") as tokens, (unfinished / LEARNED).open("wb") as learned:
            for place, example in enumerate(examples):
                tokens.write(example.tokens.astype(np.int32).tobytes())
                learned.write(example.learned.astype(bool).tobytes())
                lengths.append(len(example.tokens))
                targets.append(np.nan if example.target is None else example.target)
                documents += [(place, one.length, one.role, one.margin) for one in example.documents]
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        np.save(unfinished / STARTS, starts)
        if not np.isnan(targets).all():
            np.save(unfinished / TARGETS, np.array(targets, np.float64))
        if documents:
            np.save(unfinished / DOCUMENTS, np.array(documents, DOCUMENT))
        facts = {**(info() if callable(info) else info), CONTENT: _content(unfinished)}
        (unfinished / INFO).write_text(json.dumps(facts, indent=2) + "\n")


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as opened:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
