"""What is wrong with the files that a config names: tokenizer, corpora and records. Without torch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, CorpusEntry
from llmscale.data.corpus import (
    CorpusDamaged,
    CorpusIndex,
    CorpusInfo,
    documents_of_split,
    read_index,
    read_info,
    share_of_documents,
)
from llmscale.data.record_checks import FAULTS, check_records
from llmscale.data.records import FORMATS
from llmscale.data.tokenizer import tokenizer_hash, vocabulary_size


def check_data(config: Config) -> list[Problem]:
    """Every problem of the tokenizer and of the data: of corpora by headers, sizes and hashes, of records by
    the first of them."""
    problems = list(_tokenizer_problems(config))
    tokenizer = None if problems or config.tokenizer.path is None else tokenizer_hash(config.tokenizer.path)
    if config.task in FAULTS:
        problems += check_records(config)
    else:
        for section, entries in (("train", config.data.train), ("validation", config.data.validation)):
            for place, entry in enumerate(entries):
                key = f"data.{section}.{place}.path"
                problems += _corpus_problems(config, section, key, entry, tokenizer)
    return list({str(problem): problem for problem in problems}.values()) + list(
        _known_text_problems(config, tokenizer)
    )


def resolved_vocabulary_size(config: Config) -> int:
    """Rows of the embedding: `model.vocabulary_size`, or else the tokenizer's size.

    Raises:
        InputError: when neither is there.
    """
    if config.model.vocabulary_size is not None:
        return config.model.vocabulary_size
    if config.tokenizer.path is None:
        raise InputError([Problem("tokenizer.path", None, "set it, or model.vocabulary_size")])
    return vocabulary_size(config.tokenizer.path)


def _tokenizer_problems(config: Config) -> Iterator[Problem]:
    path, rows = config.tokenizer.path, config.model.vocabulary_size
    if path is None:
        return
    try:
        size = vocabulary_size(path)
    except InputError as error:
        yield from error.problems
        return
    if rows is not None and rows < size:
        yield Problem(
            "model.vocabulary_size",
            rows,
            f"is smaller than the tokenizer's {size:,} tokens; leave it out to take the tokenizer's size",
        )


def _known_text_problems(config: Config, tokenizer: str | None) -> Iterator[Problem]:
    """Of the corpora that are replayed, and of those that tell what is forgotten."""
    replay = config.data.replay
    wanted = [] if replay is None else [("data.replay.corpus.path", replay.corpus, "train")]
    wanted += [
        (f"data.forgetting.{place}.path", entry, "validation")
        for place, entry in enumerate(config.data.forgetting)
    ]
    for key, entry, split in wanted:
        found = _read(key, entry)
        if isinstance(found, Problem):
            yield found
            continue
        index, info = found
        yield from (
            Problem(key, entry.path, message) for message in _mismatches(config, index, info, tokenizer)
        )
        documents = share_of_documents(len(index.lengths), config.data.split, split)
        tokens, needed = int(index.lengths[documents].sum(dtype=np.int64)), 2
        if split == "train":
            needed = config.train.sequence_length + 1
        if tokens < needed:
            message = f"its {split} share by data.split has {tokens:,} tokens, and {needed:,} are needed"
            yield Problem(key, entry.path, message)


def _corpus_problems(
    config: Config, section: str, key: str, entry: CorpusEntry, tokenizer: str | None
) -> Iterator[Problem]:
    found = _read(key, entry)
    if isinstance(found, Problem):
        yield found
        return
    index, info = found
    yield from (Problem(key, entry.path, message) for message in _mismatches(config, index, info, tokenizer))
    yield from (Problem(key, entry.path, message) for message in _too_small(config, section, index))


def _read(key: str, entry: CorpusEntry) -> tuple[CorpusIndex, CorpusInfo] | Problem:
    try:
        return read_index(entry.path), read_info(entry.path)
    except CorpusDamaged as error:
        return Problem(key, entry.path, f"{error}; {_way_out(entry.path)}")


def _way_out(path: Path) -> str:
    if path.suffix in (".bin", ".idx", ".json"):
        return "write the path without its suffix"
    if path.is_file() and path.name.endswith(tuple(FORMATS)):
        return "of these records `llmscale data tokenize` makes a corpus, and task=sft reads them as they are"
    return "make it with `llmscale data tokenize`"


def _mismatches(config: Config, index: CorpusIndex, info: CorpusInfo, tokenizer: str | None) -> Iterator[str]:
    if (info.documents, info.tokens) != (len(index.lengths), index.tokens):
        yield (
            f"its .json tells of {info.documents:,} documents and {info.tokens:,} tokens, its .idx of "
            f"{len(index.lengths):,} and {index.tokens:,}: they are of different corpora"
        )
    if tokenizer is not None and info.tokenizer_hash != tokenizer:
        yield (
            f"was made with another tokenizer (SHA-256 {info.tokenizer_hash[:12]}…) than tokenizer.path = "
            f"{config.tokenizer.path} ({tokenizer[:12]}…); name that one, or tokenize again"
        )
    rows = config.model.vocabulary_size
    if config.tokenizer.path is None and rows is not None and rows < info.vocabulary_size:
        yield f"has {info.vocabulary_size:,} different tokens, more than model.vocabulary_size = {rows:,}"


def _too_small(config: Config, section: str, index: CorpusIndex) -> Iterator[str]:
    length, shared = config.train.sequence_length, not config.data.validation
    if section == "train":
        tokens = _tokens_of_split(config, index, "train")
        if tokens <= length:
            yield (
                f"its training documents have {tokens:,} tokens, fewer than one sample of "
                f"train.sequence_length + 1 = {length + 1:,}"
            )
    if config.train.validate_every and (shared or section == "validation"):
        tokens = _tokens_of_split(config, index, "validation")
        if tokens < 2:
            way_out = "name corpora in data.validation or raise the second share of data.split"
            yield (
                f"leaves {tokens} tokens to validate on; {way_out}"
                if shared
                else "has nothing to validate on"
            )


def _tokens_of_split(config: Config, index: CorpusIndex, split: str) -> int:
    documents = documents_of_split(len(index.lengths), config.data, split)
    return int(index.lengths[documents].sum(dtype=np.int64))
