"""Anything that the `datasets` library loads by name: `hf:NAME` or `hf:NAME:SPLIT`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import datasets
from pydantic import JsonValue

from llmscale.data.records import Record, RecordSource, Unreadable
from llmscale.data.sources import BadText, Part, SourceOptions

ROWS = 10_000
"""Rows of a part."""


@dataclass(frozen=True)
class DatasetRows:
    """Rows `start:stop` of a split."""

    name: str
    split: str
    fingerprint: str
    start: int
    stop: int
    size: int
    text_key: str

    def documents(self) -> Iterator[str | None]:
        rows = _load(self.name, self.split)
        for start in range(self.start, self.stop, 1000):
            batch = rows[start : min(start + 1000, self.stop)][self.text_key]
            yield from (text or "" for text in batch)


@dataclass(frozen=True)
class DatasetRecords:
    """Rows of a split, as objects."""

    name: str
    split: str

    @property
    def identity(self) -> JsonValue:
        return [self.name, self.split, _load(self.name, self.split)._fingerprint]

    def __len__(self) -> int:
        return len(_load(self.name, self.split))

    def __iter__(self) -> Iterator[tuple[int, Record | Unreadable]]:
        for number, record in enumerate(_load(self.name, self.split), start=1):
            assert isinstance(record, dict)
            yield number, record


def records_of_dataset(name: str) -> RecordSource:
    name, _, split = name.partition(":")
    _load(name, split or "train")
    return DatasetRecords(name, split or "train")


def parts_of_dataset(name: str, options: SourceOptions) -> list[Part]:
    name, _, split = name.partition(":")
    rows = _load(name, split or "train")
    if options.text_key not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise BadText(f"has no column {options.text_key!r}; --text-key may be one of: {columns}")
    row_bytes = (rows.dataset_size or 0) // max(len(rows), 1) or 1
    bounds = [(start, min(start + ROWS, len(rows))) for start in range(0, len(rows), ROWS)]
    return [
        DatasetRows(
            name,
            split or "train",
            rows._fingerprint,
            start,
            stop,
            (stop - start) * row_bytes,
            options.text_key,
        )
        for start, stop in bounds
    ]


@lru_cache(1)
def _load(name: str, split: str) -> datasets.Dataset:
    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadText(f"datasets cannot load it: {error}") from None
    if not isinstance(rows, datasets.Dataset):
        raise BadText(f"split {split!r} is no table of rows")
    return rows
