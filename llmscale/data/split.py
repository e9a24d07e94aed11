"""Which records of a file belong to which split, where none is held out in a file of its own."""

import hashlib
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from llmscale.config.schema import Config, CorpusEntry
from llmscale.data.corpus import documents_of_split
from llmscale.data.encoding import RecordEncoder
from llmscale.data.records import Record, RecordSource, Unreadable


@runtime_checkable
class DealsTogether(Protocol):
    """An encoder whose records have something in common that must not be in two splits."""

    def common(self, record: Record, fields: Mapping[str, str]) -> str | None:
        """The same for records that belong together; None of one that cannot be used."""
        ...


def records_of_split(
    config: Config,
    encoder: RecordEncoder | DealsTogether,
    source: RecordSource,
    entry: CorpusEntry,
    split: str,
) -> np.ndarray:
    """Numbers of the records of `split`, in rising order. `data.split` deals out prompts where records are of
    prompts: several answers to one would otherwise be trained on and validated on."""
    if config.data.validation or not isinstance(encoder, DealsTogether):
        return documents_of_split(len(source), config.data, split)
    numbers: dict[str, int] = {}
    of_record: list[int] = []
    for place, (_, record) in enumerate(source):
        found = None if isinstance(record, Unreadable) else encoder.common(record, entry.fields)
        common = f"record {place}" if found is None else hashlib.sha256(found.encode()).hexdigest()
        of_record.append(numbers.setdefault(common, len(numbers)))
    return np.flatnonzero(np.isin(of_record, documents_of_split(len(numbers), config.data, split)))
