"""Parquet tables with the text in one column."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from pydantic import JsonValue

from llmscale.data.records import Record, RecordSource, Unreadable, file_identity
from llmscale.data.sources import PART_BYTES, BadText, Part, SourceOptions


@dataclass(frozen=True)
class RowGroups:
    """Row groups `first:last` of a file."""

    file: str
    modified: int
    first: int
    last: int
    size: int
    text_key: str

    def documents(self) -> Iterator[str | None]:
        try:
            with pyarrow.parquet.ParquetFile(self.file) as table:
                groups = list(range(self.first, self.last))
                for batch in table.iter_batches(1024, row_groups=groups, columns=[self.text_key]):
                    yield from (text or "" for text in batch.column(0).to_pylist())
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise BadText(f"{self.file} is damaged: {error}") from None


@dataclass(frozen=True)
class RecordRows:
    """Rows of a file, as objects."""

    file: Path

    @property
    def identity(self) -> JsonValue:
        return file_identity(self.file)

    def __len__(self) -> int:
        return pyarrow.parquet.read_metadata(self.file).num_rows

    def __iter__(self) -> Iterator[tuple[int, Record | Unreadable]]:
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(self.file) as table:
                for batch in table.iter_batches(1024):
                    for record in batch.to_pylist():
                        number += 1
                        yield number, record
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise BadText(f"{self.file} is damaged: {error}") from None


def records_of_file(file: Path) -> RecordSource:
    try:
        pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowInvalid as error:
        raise BadText(f"is no parquet file, or damaged: {error}") from None
    return RecordRows(file)


def parts_of_file(file: Path, options: SourceOptions) -> list[Part]:
    try:
        metadata = pyarrow.parquet.read_metadata(file)
        field_type = metadata.schema.to_arrow_schema().field(options.text_key).type
    except KeyError:
        names = ", ".join(metadata.schema.to_arrow_schema().names)  # type: ignore[possibly-undefined]
        raise BadText(f"has no column {options.text_key!r}; --text-key may be one of: {names}") from None
    except pyarrow.ArrowInvalid as error:
        raise BadText(f"is no parquet file, or damaged: {error}") from None
    if not (pyarrow.types.is_string(field_type) or pyarrow.types.is_large_string(field_type)):
        raise BadText(f"column {options.text_key!r} holds {field_type}, not text")
    modified, parts, first, size = file.stat().st_mtime_ns, [], 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= PART_BYTES or group == metadata.num_row_groups - 1:
            parts.append(RowGroups(str(file), modified, first, group + 1, size, options.text_key))
            first, size = group + 1, 0
    return parts
