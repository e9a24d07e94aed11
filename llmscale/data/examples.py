"""Examples that are ready to train on: tokens, which of them are learned, and a target where there is one.

A folder of flat files, written once and mapped into memory by every rank.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from llmscale.data.files import replace_folder

INFO = "info.json"
STARTS, TOKENS, LEARNED, TARGETS = "starts.npy", "tokens.bin", "learned.bin", "targets.npy"


@dataclass(frozen=True)
class Example:
    """One text."""

    tokens: np.ndarray
    """int32."""
    learned: np.ndarray
    """bool, one a token: it counts in the loss, where it is the label."""
    target: float | None = None
    """Number of its label, or the number itself (classification)."""


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
        targets = folder / TARGETS
        self._targets = np.load(targets, mmap_mode="r") if targets.is_file() else None

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64, tokens of each."""
        return np.diff(self._starts)

    def __getitem__(self, place: int) -> Example:
        start, stop = int(self._starts[place]), int(self._starts[place + 1])
        target = None if self._targets is None else float(self._targets[place])
        return Example(self._tokens[start:stop], self._learned[start:stop], target)


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
    lengths, targets = [], []
    with replace_folder(folder) as unfinished:
        with (unfinished / TOKENS).open("wb") as tokens, (unfinished / LEARNED).open("wb") as learned:
            for example in examples:
                tokens.write(example.tokens.astype(np.int32).tobytes())
                learned.write(example.learned.astype(bool).tobytes())
                lengths.append(len(example.tokens))
                targets += [] if example.target is None else [example.target]
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        np.save(unfinished / STARTS, starts)
        if targets:
            np.save(unfinished / TARGETS, np.array(targets, np.float64))
        facts = info() if callable(info) else info
        (unfinished / INFO).write_text(json.dumps(dict(facts), indent=2) + "\n")
