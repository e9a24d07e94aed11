"""A look at a corpus: its figures, and samples as training reads them."""

from itertools import groupby
from pathlib import Path

import numpy as np

from llmscale.config.problems import InputError, Problem
from llmscale.data.blend import ShuffledCorpus
from llmscale.data.corpus import CorpusDamaged, CorpusIndex, CorpusInfo, read_index, read_info
from llmscale.data.tokenizer import open_encoder, tokenizer_hash

Span = tuple[str, bool]
"""Text of neighbouring labels, and whether they count in the loss."""


def corpus_facts(prefix: Path, tokenizer: Path) -> list[tuple[str, str]]:
    """Names and values, to be shown as a table.

    Raises:
        InputError: when the corpus is damaged or was made with another tokenizer.
    """
    index, info = _open(prefix, tokenizer)
    lengths = np.array(index.lengths)
    return [
        ("documents", f"{len(lengths):,}"),
        ("tokens", f"{info.tokens:,} ({index.token_dtype})"),
        ("bytes/token", f"{info.text_bytes / info.tokens:.2f}"),
        ("document length", f"median {np.median(lengths):,.0f}, longest {lengths.max():,} tokens"),
        ("vocabulary", f"{info.vocabulary_size:,}, of it used {_tokens_used(prefix, index):,}"),
        ("tokenizer", f"SHA-256 {info.tokenizer_hash}"),
        ("sources", ", ".join(info.sources)),
    ]


def read_samples(
    prefix: Path, tokenizer: Path, count: int, sequence_length: int, seed: int
) -> list[list[Span]]:
    """The first `count` samples of a shuffled epoch, each as spans of labels."""
    index, _ = _open(prefix, tokenizer)
    documents = np.arange(len(index.lengths), dtype=np.int32)
    try:
        corpus = ShuffledCorpus(prefix, documents, sequence_length, str(seed), keep_rest=True)
    except ValueError as error:
        raise InputError([Problem("CORPUS", prefix, str(error))]) from None
    encoder = open_encoder(tokenizer)
    samples: list[list[Span]] = []
    for number in range(min(count, corpus.samples_per_epoch)):
        sample = corpus.sample(0, number)
        labels = zip(sample.labels_S.tolist(), sample.loss_mask_S.bool().tolist())
        samples.append(
            [
                (encoder.decode([token for token, _ in span], skip_special_tokens=False), counts)
                for counts, span in groupby(labels, key=lambda label: label[1])
            ]
        )
    return samples


def _open(prefix: Path, tokenizer: Path) -> tuple[CorpusIndex, CorpusInfo]:
    try:
        index, info = read_index(prefix), read_info(prefix)
    except CorpusDamaged as error:
        raise InputError([Problem("CORPUS", prefix, str(error))]) from None
    if tokenizer_hash(tokenizer) != info.tokenizer_hash:
        raise InputError([Problem("--tokenizer", tokenizer, "is not the one that made this corpus")])
    return index, info


def _tokens_used(prefix: Path, index: CorpusIndex) -> int:
    """Different ids among the first ten million tokens."""
    head = np.memmap(prefix.with_name(prefix.name + ".bin"), index.token_dtype, "r")[:10_000_000]
    return len(np.unique(head))
