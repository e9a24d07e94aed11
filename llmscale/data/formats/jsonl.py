"""JSON lines, plain or gzipped: one object a line, with the text in one of its fields."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from llmscale.data.records import Record, RecordSource, Unreadable, file_identity
from llmscale.data.sources import PART_BYTES, BadText, Part, SourceOptions


@dataclass(frozen=True)
class JsonLines:
    """The lines of a file that begin in the bytes `start:stop`."""

    file: str
    modified: int
    start: int
    stop: int
    text_key: str

    @property
    def size(self) -> int:
        return self.stop - self.start

    def documents(self) -> Iterator[str | None]:
        with Path(self.file).open("rb") as lines:
            if self.start:
                # The line that the byte before belongs to is of the part before.
                lines.seek(self.start - 1)
                lines.readline()
            while lines.tell() < self.stop:
                place = lines.tell()
                yield from texts_of_lines([lines.readline()], self.text_key, f"{self.file}, byte {place}")


@dataclass(frozen=True)
class CompressedJsonLines:
    """A whole gzipped file: it can only be read from its beginning."""

    file: str
    modified: int
    size: int
    text_key: str

    def documents(self) -> Iterator[str | None]:
        yield from texts_of_lines(_compressed_lines(Path(self.file)), self.text_key, self.file)


@dataclass(frozen=True)
class RecordLines:
    """Objects, one a line."""

    file: Path
    lines: Callable[[Path], Iterator[bytes]]

    @property
    def identity(self) -> JsonValue:
        return file_identity(self.file)

    def __len__(self) -> int:
        return sum(1 for line in self.lines(self.file) if line.strip())

    def __iter__(self) -> Iterator[tuple[int, Record | Unreadable]]:
        for number, line in enumerate(self.lines(self.file), start=1):
            if line.strip():
                yield number, _record(line)


def records_of_file(file: Path) -> RecordSource:
    return RecordLines(file, _lines)


def records_of_compressed(file: Path) -> RecordSource:
    return RecordLines(file, _compressed_lines)


def parts_of_file(file: Path, options: SourceOptions) -> list[Part]:
    stat = file.stat()
    starts = range(0, stat.st_size, PART_BYTES)
    return [
        JsonLines(str(file), stat.st_mtime_ns, start, min(start + PART_BYTES, stat.st_size), options.text_key)
        for start in starts
    ]


def parts_of_compressed(file: Path, options: SourceOptions) -> list[Part]:
    stat = file.stat()
    return [CompressedJsonLines(str(file), stat.st_mtime_ns, stat.st_size, options.text_key)]


def texts_of_lines(lines: Iterable[bytes], text_key: str, place: str) -> Iterator[str | None]:
    """The text of each line; empty lines have none."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_key]
        except UnicodeDecodeError:
            yield None
            continue
        except ValueError as error:
            raise BadText(f"{place}, line {number} from there: is not JSON: {error}") from None
        except (KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise BadText(f"{place}, line {number} from there: has no text in {text_key!r}; see --text-key")
        yield text


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from lines


def _compressed_lines(file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(file, "rb") as lines:
            yield from lines
    except (EOFError, zlib.error, OSError) as error:
        raise BadText(f"{file} is damaged: {error}") from None


def _record(line: bytes) -> Record | Unreadable:
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return Unreadable("is not UTF-8 text")
    except ValueError as error:
        return Unreadable(f"is not JSON: {error}")
    return record if isinstance(record, dict) else Unreadable("is no JSON object")
