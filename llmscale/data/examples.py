"""Examples that are ready to train on: tokens, which of them are learned, and a target where there is one.

A folder of flat files, written once and mapped into memory by every rank.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from llmscale.data.files import replace_folder
from llmscale.data.pack import packed
from llmscale.data.row import Row
from llmscale.parallel.rng import derived_seed

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


class ExampleRows:
    """Rows of examples, in a new order each epoch; which examples share a row stays the same.

    Args:
        row_length: tokens of a row.
        seed: of the order.
        virtual_tokens: placeholders -1, -2, … before each example.
        packing: as many examples a row as fit, else one.

    Raises:
        ValueError: there is no example, or one is too long for a row.
    """

    def __init__(
        self, examples: ExampleSet, row_length: int, seed: str, virtual_tokens: int, packing: bool
    ) -> None:
        self.examples = examples
        self.row_length = row_length
        self.seed = seed
        self.virtual_tokens = virtual_tokens
        self.packing = packing
        # The last token is a label only.
        lengths = (examples.lengths - 1 + virtual_tokens).tolist()
        if not lengths:
            raise ValueError("has no example")
        if max(lengths) > row_length:
            raise ValueError(f"has an example of {max(lengths)} tokens, and a row has {row_length}")
        self.rows: Sequence[Sequence[int]] = (
            packed(lengths, row_length) if packing else [[place] for place in range(len(lengths))]
        )
        self._order = np.zeros(0, np.int64)
        self._order_of = -1

    @property
    def samples_per_epoch(self) -> int:
        return len(self.rows)

    def sample(self, epoch: int, sample: int) -> Row:
        if epoch != self._order_of:
            generator = np.random.default_rng(derived_seed(self.seed, epoch))
            self._order, self._order_of = generator.permutation(len(self.rows)), epoch
        return self.row(self.rows[int(self._order[sample])])

    def row(self, places: Sequence[int]) -> Row:
        """The examples at `places` in one row, padded at the end."""
        tokens, labels, learned, positions, lengths, targets = [], [], [], [], [], []
        for example in (self.examples[place] for place in places):
            # What stands before the first token is learned to lead to it.
            before = -1 - np.arange(self.virtual_tokens)
            whole = np.concatenate((before, example.tokens)).astype(np.int64)
            tokens.append(whole[:-1])
            labels.append(np.maximum(whole[1:], 0))
            counts = np.concatenate((np.zeros(self.virtual_tokens, bool), example.learned))
            learned.append(counts[1:])
            positions.append(np.arange(len(whole) - 1))
            lengths.append(len(whole) - 1)
            targets += [] if example.target is None else [example.target]
        padding = self.row_length - sum(lengths)
        if padding:
            for parts in (tokens, labels, learned):
                parts.append(np.zeros(padding, np.int64))
            positions.append(np.arange(padding))
            lengths.append(padding)
        return Row(
            tokens_S=torch.from_numpy(np.concatenate(tokens)),
            labels_S=torch.from_numpy(np.concatenate(labels)),
            loss_mask_S=torch.from_numpy(np.concatenate(learned).astype(np.float32)),
            position_ids_S=torch.from_numpy(np.concatenate(positions)),
            document_lengths=tuple(lengths) if self.packing else None,
            padding=padding,
            targets=tuple(targets),
        )
