"""Where records come from: a file with one object a line or row, or a data set by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import JsonValue

from llmscale.data.sources import HUB_PREFIX, BadText

Record = Mapping[str, Any]

FORMATS = {
    ".jsonl": "llmscale.data.formats.jsonl:records_of_file",
    ".jsonl.gz": "llmscale.data.formats.jsonl:records_of_compressed",
    ".jsonl.zst": "llmscale.data.formats.jsonl_zstandard:records_of_file",
    ".parquet": "llmscale.data.formats.parquet:records_of_file",
}
"""End of a file's name -> function of the file."""

HUB = "llmscale.data.formats.hub:records_of_dataset"


@dataclass(frozen=True)
class Unreadable:
    """What stands where a record should."""

    message: str


class RecordSource(Protocol):
    """Records in a fixed order, read again by each iteration."""

    @property
    def identity(self) -> JsonValue:
        """Changes when the records do."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[int, Record | Unreadable]]:
        """Each with its line or row, counted from 1.

        Raises:
            BadText: the source is damaged.
        """
        ...


def record_source(path: Path) -> RecordSource:
    """The records of a file, or of `hf:NAME[:SPLIT]`.

    Raises:
        BadText: it is not there or of no known format; says so.
    """
    name = str(path)
    try:
        if name.startswith(HUB_PREFIX):
            return _function(HUB)(name.removeprefix(HUB_PREFIX))
        if not path.is_file():
            raise BadText(_not_a_file(path))
        for suffix, function in FORMATS.items():
            if path.name.endswith(suffix):
                return _function(function)(path)
    except ImportError as error:
        raise BadText(f"needs the package {error.name}: pip install 'llmscale[data]'") from None
    except OSError as error:
        raise BadText(f"cannot be read: {error}") from None
    raise BadText(f"is no file of records ({', '.join(FORMATS)}) and no data set (hf:NAME[:SPLIT])")


def _not_a_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder, not a file of records"
    if path.with_name(f"{path.name}.idx").is_file():
        return f"is a corpus of tokens, for task=pretrain; name a file of records ({', '.join(FORMATS)})"
    return "no such file"


def file_identity(file: Path) -> JsonValue:
    """Path, bytes and time of change."""
    stat = file.stat()
    return [str(file.absolute()), stat.st_size, stat.st_mtime_ns]


def _function(name: str):
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
