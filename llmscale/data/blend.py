"""Sample number → sample: which corpus, which epoch of it, which place in that epoch.

Samples 0, 1, 2, … are the order of training. What sample i is depends on the seed, the corpora, their
weights and the sequence length, and on nothing else: not on the number of steps, ranks or the batch size.

Megatron's `GPTDataset` shuffles and cuts documents into samples, but its order depends on how many
samples are asked for. So one is built for each epoch, when that epoch is first read, with the epoch in
its seed. Indices are held in memory (about 12 bytes a sample and 4 a document), so that ranks of
several nodes have no cache folder to race for.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets import helpers_cpp  # type: ignore[attr-defined]  # a compiled module
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch import Tensor

from llmscale.data.row import Row, RowSource

# It warns on every build that there is no cache folder, which is the intention here.
logging.getLogger("megatron.core.datasets.gpt_dataset").setLevel(logging.ERROR)

EPOCHS_HELD = 2


@dataclass(frozen=True)
class SampleId:
    """Where a sample comes from."""

    corpus: int
    """Place in the list of corpora."""
    epoch: int
    sample: int
    """Place in the shuffled order of that epoch."""


@dataclass(frozen=True)
class _NoTokenizer:
    """What `GPTDataset` asks of a tokenizer. It has no pad token: the dataset then pads with -1 and
    masks just those, whereas a pad id would mask every real token of that id."""

    vocab_size: None = None
    eod: int = -2

    @property
    def unique_identifiers(self) -> dict[str, str]:
        return {}


class ShuffledCorpus:
    """The samples of some documents of one corpus, in a new order each epoch.

    With `keep_rest` the tokens that are left over after an epoch's whole samples are one more sample,
    its end masked: for validation, where every token should count. In training they are dropped:
    documents are shuffled, so they are others each time.
    """

    def __init__(
        self, prefix: Path, documents: np.ndarray, sequence_length: int, seed: str, keep_rest: bool = False
    ) -> None:
        self.indexed = IndexedDataset(str(prefix))
        self.documents = documents
        self.sequence_length = sequence_length
        self.seed = seed
        tokens = int(self.indexed.sequence_lengths[documents].sum(dtype=np.int64))
        self.whole_samples, rest = divmod(max(tokens - 1, 0), sequence_length)
        self.samples_per_epoch = self.whole_samples + (1 if keep_rest and rest else 0)
        if self.samples_per_epoch == 0:
            raise ValueError(f"has {tokens:,} tokens, too few for a sample of {sequence_length}")
        self._epoch = lru_cache(EPOCHS_HELD)(self._build_epoch)

    def sample(self, epoch: int, sample: int) -> Row:
        dataset = self._epoch(epoch)
        if sample >= self.whole_samples:
            return self._rest(dataset)
        fields: dict[str, Tensor] = dataset[sample]
        return Row(fields["tokens"], fields["labels"], fields["loss_mask"], fields["position_ids"])

    def _build_epoch(self, epoch: int) -> GPTDataset:
        digest = hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()
        config = GPTDatasetConfig(
            random_seed=int.from_bytes(digest[:4], "little"),
            sequence_length=self.sequence_length,
            path_to_cache="",  # None would mean a folder beside the corpus
            tokenizer=_NoTokenizer(),  # type: ignore[arg-type]
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        return GPTDataset(self.indexed, None, self.documents, None, Split.train, config)

    def _rest(self, dataset: GPTDataset) -> Row:
        """The tokens after the last whole sample. (Megatron's own option for them counts samples in
        float32, which is wrong by some beyond 16 million tokens.)"""
        place, offset = (int(number) for number in dataset.sample_index[-1])
        first, *others = (int(document) for document in dataset.document_index[place:])
        parts = [self.indexed.get(first, offset), *(self.indexed.get(document) for document in others)]
        text = torch.from_numpy(np.concatenate(parts, dtype=np.int64))
        padded = torch.zeros(self.sequence_length + 1, dtype=torch.int64)
        padded[: len(text)] = text
        places = torch.arange(self.sequence_length)
        return Row(padded[:-1], padded[1:], (places < len(text) - 1).float(), places)


class Blend:
    """Samples of several sources in proportion to their weights.

    Megatron's greedy choice: each sample comes from the corpus that is furthest behind its share. The
    choice looks back only, so the list can be made longer without changing what stands in it.
    """

    def __init__(self, corpora: Sequence[RowSource], weights: Sequence[float]) -> None:
        self.corpora = list(corpora)
        self.weights = np.array(weights, np.float64) / sum(weights)
        self._picks = self._pick(1)

    def sample(self, number: int) -> Row:
        place = self.locate(number)
        return self.corpora[place.corpus].sample(place.epoch, place.sample)

    def locate(self, number: int) -> SampleId:
        if len(self.corpora) == 1:
            corpus, within = 0, number
        else:
            corpus, within = self._choice(number)
        epoch, sample = divmod(within, self.corpora[corpus].samples_per_epoch)
        return SampleId(corpus, epoch, sample)

    def _choice(self, number: int) -> tuple[int, int]:
        """The corpus of sample `number`, and how many samples before it came from that corpus."""
        picks = self._picks
        if number >= len(picks[0]):
            picks = self._picks = self._pick(max(2 * number, 1 << 16))
        return int(picks[0][number]), int(picks[1][number])

    def _pick(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        corpus_of, number_within = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
        helpers_cpp.build_blending_indices(
            corpus_of, number_within, self.weights, len(self.weights), samples, False
        )
        return corpus_of, number_within
