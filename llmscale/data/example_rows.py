"""Prepared examples as rows of a batch."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmscale.data.examples import Example, ExampleSet
from llmscale.data.pack import packed
from llmscale.data.row import Member, Row
from llmscale.parallel.rng import derived_seed


class _Part(NamedTuple):
    """A document in a row, or what fills it up."""

    tokens: np.ndarray
    labels: np.ndarray
    learned: np.ndarray
    positions: np.ndarray


class ExampleRows:
    """Rows of examples, in a new order each epoch; which examples share a row stays the same.

    Args:
        row_length: tokens of a row.
        seed: of the order.
        virtual_tokens: placeholders -1, -2, … before each document.
        packing: as many examples a row as fit, else one.
        references: log-probability of each document by its number, where a reference model has told.

    Raises:
        ValueError: there is no example, or one is too long for a row.
    """

    def __init__(
        self,
        examples: ExampleSet,
        row_length: int,
        seed: str,
        virtual_tokens: int,
        packing: bool,
        references: np.ndarray | None = None,
    ) -> None:
        self.examples = examples
        self.row_length = row_length
        self.seed = seed
        self.virtual_tokens = virtual_tokens
        self.packing = packing
        self.references = references
        # The last token of a document is a label only.
        lengths = (examples.lengths + (virtual_tokens - 1) * examples.document_counts).tolist()
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
        examples = [self.examples[place] for place in places]
        parts = [part for example in examples for part in self._parts(example)]
        padding = self.row_length - sum(len(part.tokens) for part in parts)
        if padding:
            parts.append(_filling(padding))
        tokens, labels, learned, positions = (np.concatenate(column) for column in zip(*parts))
        is_packed = self.packing or self.examples.has_groups
        return Row(
            tokens_S=torch.from_numpy(tokens),
            labels_S=torch.from_numpy(labels),
            loss_mask_S=torch.from_numpy(learned.astype(np.float32)),
            position_ids_S=torch.from_numpy(positions),
            document_lengths=tuple(len(part.tokens) for part in parts) if is_packed else None,
            padding=padding,
            targets=_targets(examples),
            members=self._members(places) if self.examples.has_groups else (),
        )

    def _parts(self, example: Example) -> Iterator[_Part]:
        """One a document."""
        # What stands before the first token is learned to lead to it.
        before = -1 - np.arange(self.virtual_tokens)
        start = 0
        for length in example.lengths:
            whole = np.concatenate((before, example.tokens[start : start + length])).astype(np.int64)
            counts = np.concatenate(
                (np.zeros(self.virtual_tokens, bool), example.learned[start : start + length])
            )
            yield _Part(whole[:-1], np.maximum(whole[1:], 0), counts[1:], np.arange(len(whole) - 1))
            start += length

    def _members(self, places: Sequence[int]) -> tuple[Member, ...]:
        return tuple(
            Member(group, document.role, document.margin, self._reference(number), number)
            for group, place in enumerate(places)
            for document, number in zip(self.examples[place].documents, self.examples.document_numbers(place))
        )

    def _reference(self, document: int) -> float:
        return math.nan if self.references is None else float(self.references[document])


def _filling(length: int) -> _Part:
    nothing = np.zeros(length, np.int64)
    return _Part(nothing, nothing, nothing.astype(bool), np.arange(length))


def _targets(examples: Sequence[Example]) -> tuple[float, ...]:
    """One a document: of a group its first has the target."""
    if all(example.target is None for example in examples):
        return ()
    return tuple(
        math.nan if example.target is None or place else example.target
        for example in examples
        for place in range(len(example.lengths))
    )
