"""JSON lines compressed with zstandard."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from llmscale.data.formats.jsonl import RecordLines, texts_of_lines
from llmscale.data.records import RecordSource
from llmscale.data.sources import BadText, Part, SourceOptions


@dataclass(frozen=True)
class ZstandardJsonLines:
    """A whole file: it can only be read from its beginning."""

    file: str
    modified: int
    size: int
    text_key: str

    def documents(self) -> Iterator[str | None]:
        yield from texts_of_lines(_lines(Path(self.file)), self.text_key, self.file)


def parts_of_file(file: Path, options: SourceOptions) -> list[Part]:
    stat = file.stat()
    return [ZstandardJsonLines(str(file), stat.st_mtime_ns, stat.st_size, options.text_key)]


def records_of_file(file: Path) -> RecordSource:
    return RecordLines(file, _lines)


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as raw:
            stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            yield from io.BufferedReader(stream)  # type: ignore[arg-type]
    except zstandard.ZstdError as error:
        raise BadText(f"{file} is damaged: {error}") from None
