"""JSON lines compressed with zstandard."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from llmscale.data.formats.jsonl import texts_of_lines
from llmscale.data.sources import BadText, Part, SourceOptions


@dataclass(frozen=True)
class ZstandardJsonLines:
    """A whole file: it can only be read from its beginning."""

    file: str
    modified: int
    size: int
    text_key: str

    def documents(self) -> Iterator[str | None]:
        try:
            with Path(self.file).open("rb") as raw:
                stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
                yield from texts_of_lines(io.BufferedReader(stream), self.text_key, self.file)  # type: ignore[arg-type]
        except zstandard.ZstdError as error:
            raise BadText(f"{self.file} is damaged: {error}") from None


def parts_of_file(file: Path, options: SourceOptions) -> list[Part]:
    stat = file.stat()
    return [ZstandardJsonLines(str(file), stat.st_mtime_ns, stat.st_size, options.text_key)]
