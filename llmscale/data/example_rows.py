"""Prepared examples as rows of a batch."""

from collections.abc import Sequence

import numpy as np
import torch

from llmscale.data.examples import ExampleSet
from llmscale.data.pack import packed
from llmscale.data.row import Row
from llmscale.parallel.rng import derived_seed


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
