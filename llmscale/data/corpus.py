"""A tokenised corpus on disk: Megatron's `.bin` and `.idx`, and a `.json` that says what they hold.

`.bin` is every document's token ids one after the other; `.idx` says where each document lies:

    magic (9 bytes) · version (u64) · dtype code (u8) · sequences (u64) · documents + 1 (u64)
    lengths in tokens (i32 each) · offsets in bytes (i64 each) · sequence at which each document starts (i64)

This module reads and writes that layout with numpy alone: importing Megatron takes seconds, which is
too long for a check of the config and for each worker process of the tokeniser.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmscale.config.schema import CorpusEntry, DataSection

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
FORMAT_VERSION = 1
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""The integer types among Megatron's dtype codes."""

OFFSETS_BLOCK = 1 << 20

SPLITS = ("train", "validation", "test")


class CorpusDamaged(Exception):
    """The files of a corpus are missing, cut short or not what they should be."""


@dataclass(frozen=True)
class CorpusInfo:
    """The `.json` beside a corpus."""

    tokenizer_hash: str
    """SHA-256 of the tokenizer.json that made the token ids."""
    vocabulary_size: int
    end_of_document_id: int
    documents: int
    tokens: int
    text_bytes: int
    """UTF-8 bytes of the text that was tokenised."""
    sources: list[str]
    bin_bytes: int
    idx_bytes: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class CorpusIndex:
    """What an `.idx` says. Arrays are mapped from the file, not read."""

    lengths: np.ndarray
    """int32 [sequences], tokens of each."""
    token_dtype: np.dtype[Any]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


def corpus_file(prefix: Path, suffix: str) -> Path:
    """`prefix` + `.bin`, `.idx` or `.json`; a dot inside the prefix's own name stays."""
    return prefix.with_name(prefix.name + suffix)


def token_dtype(vocabulary_size: int) -> type[np.uint16] | type[np.int32]:
    """The type that Megatron too would choose for the ids of this vocabulary."""
    return np.uint16 if vocabulary_size < 65500 else np.int32


def write_index(file: BinaryIO, lengths: Sequence[np.ndarray], dtype: type[np.integer[Any]]) -> int:
    """Write the `.idx` of documents whose lengths in tokens are given in order; returns its size in bytes."""
    lengths_all = np.concatenate([np.zeros(0, np.int32), *lengths]).astype(np.int32)
    code = next(code for code, known in DTYPES.items() if known is dtype)
    offsets = np.zeros(len(lengths_all), np.int64)
    np.cumsum(lengths_all[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= np.dtype(dtype).itemsize
    file.write(HEADER.pack(MAGIC, 1, code, len(lengths_all), len(lengths_all) + 1))
    file.write(lengths_all.tobytes())
    file.write(offsets.tobytes())
    file.write(np.arange(len(lengths_all) + 1, dtype=np.int64).tobytes())
    return file.tell()


def read_index(prefix: Path) -> CorpusIndex:
    """Map the index, having checked that it and the `.bin` are whole.

    Raises:
        CorpusDamaged: says what is wrong with which file.
    """
    idx, bin_file = corpus_file(prefix, ".idx"), corpus_file(prefix, ".bin")
    missing = [file.name for file in (idx, bin_file) if not file.is_file()]
    if missing:
        raise CorpusDamaged(f"{' and '.join(missing)} missing")
    dtype, sequences, boundaries = _read_header(idx)
    expected = HEADER.size + sequences * (4 + 8) + boundaries * 8
    if idx.stat().st_size != expected:
        raise CorpusDamaged(
            f"{idx.name} has {idx.stat().st_size:,} bytes where its header asks for {expected:,}: "
            "cut short or corrupt"
        )
    if not sequences or not bin_file.stat().st_size:
        raise CorpusDamaged("holds no documents")
    lengths = np.memmap(idx, np.int32, "r", HEADER.size, (sequences,))
    offsets = np.memmap(idx, np.int64, "r", HEADER.size + 4 * sequences, (sequences,))
    ends = np.memmap(idx, np.int64, "r", HEADER.size + 12 * sequences, (boundaries,))
    index = CorpusIndex(lengths, np.dtype(dtype))
    if int(lengths.min()) < 0 or not _offsets_follow(offsets, lengths, index.token_dtype.itemsize):
        raise CorpusDamaged(f"{idx.name} is corrupt: its offsets do not follow from its lengths")
    if int(ends[0]) != 0 or int(ends[-1]) != sequences:
        raise CorpusDamaged(f"{idx.name} is corrupt: its documents do not cover its sequences")
    wanted = index.tokens * index.token_dtype.itemsize
    if bin_file.stat().st_size != wanted:
        raise CorpusDamaged(
            f"{bin_file.name} has {bin_file.stat().st_size:,} bytes where {idx.name} asks for {wanted:,}: "
            "cut short, or of another corpus"
        )
    return index


def _read_header(idx: Path) -> tuple[type[np.integer[Any]], int, int]:
    with idx.open("rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise CorpusDamaged(f"{idx.name} is cut short: {len(header)} bytes are not even a header")
    magic, version, code, sequences, boundaries = HEADER.unpack(header)
    if magic != MAGIC or version != 1:
        raise CorpusDamaged(f"{idx.name} is not a Megatron index (its first bytes are {header[:9]!r})")
    if code not in DTYPES:
        raise CorpusDamaged(f"{idx.name} is corrupt: token dtype code {code} is none of {sorted(DTYPES)}")
    return DTYPES[code], sequences, boundaries


def _offsets_follow(offsets: np.ndarray, lengths: np.ndarray, item_bytes: int) -> bool:
    """Whether each offset is the sum of the lengths before it, checked in blocks to save memory."""
    expected, block = 0, OFFSETS_BLOCK
    for start in range(0, len(lengths), block):
        ends = expected + np.cumsum(lengths[start : start + block], dtype=np.int64) * item_bytes
        here = offsets[start : start + block]
        if int(here[0]) != expected or not np.array_equal(here[1:], ends[:-1]):
            return False
        expected = int(ends[-1])
    return True


def write_info(info: CorpusInfo, file: BinaryIO) -> None:
    file.write((json.dumps(asdict(info), indent=2) + "\n").encode())


def read_info(prefix: Path) -> CorpusInfo:
    """The `.json` of a corpus.

    Raises:
        CorpusDamaged: when it is missing, unreadable or of another format version.
    """
    path = corpus_file(prefix, ".json")
    try:
        info = CorpusInfo(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise CorpusDamaged(f"{path.name} missing: nothing says which tokenizer made this corpus") from None
    except (OSError, ValueError, TypeError) as error:
        raise CorpusDamaged(f"{path.name} cannot be read: {error}") from None
    if info.format_version != FORMAT_VERSION:
        raise CorpusDamaged(f"{path.name} has format version {info.format_version}, this is {FORMAT_VERSION}")
    return info


def entries_of_split(data: DataSection, split: str) -> list[CorpusEntry]:
    """The corpora that `split` reads: `data.validation` where it is named, `data.train` else."""
    return data.validation if split == "validation" and data.validation else data.train


def documents_of_split(documents: int, data: DataSection, split: str) -> np.ndarray:
    """int32, the documents of a corpus of `documents` documents that `split` reads, in rising order."""
    if data.validation:
        return np.arange(documents if split != "test" else 0, dtype=np.int32)
    return share_of_documents(documents, data.split, split)


def share_of_documents(documents: int, shares: Sequence[float], split: str) -> np.ndarray:
    """int32, the documents of a corpus that are dealt to `split`, in rising order.

    Documents are dealt by a permutation that depends on their number alone. Neighbours are often
    alike (a folder of a source tree, a crawl's site), so consecutive parts would differ in kind; and a
    permutation that depended on `train.seed` would let a continued run train on what it validates on.
    """
    dealt = np.random.RandomState(20240229).permutation(documents).astype(np.int32)
    ends = np.cumsum([0.0, *shares]) / sum(shares)
    bounds = np.rint(ends * documents).astype(np.int64)
    part = SPLITS.index(split)
    return np.sort(dealt[bounds[part] : bounds[part + 1]])
