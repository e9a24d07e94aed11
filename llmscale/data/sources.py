"""Where text comes from: what the user names, cut into parts that are read independently.

A part is the unit of work and of resuming. How text is cut depends on the sources alone, so that the
corpus is the same whatever the number of workers.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llmscale.config.problems import InputError, Problem

PART_BYTES = 16 << 20
"""Bytes of a part, roughly, where the format can be cut."""

FORMATS = {
    ".jsonl": "llmscale.data.formats.jsonl:parts_of_file",
    ".jsonl.gz": "llmscale.data.formats.jsonl:parts_of_compressed",
    ".jsonl.zst": "llmscale.data.formats.jsonl_zstandard:parts_of_file",
    ".parquet": "llmscale.data.formats.parquet:parts_of_file",
}
"""End of a file's name -> function of (file, options) that cuts it. Any other file is one document."""

HUB_PREFIX = "hf:"
HUB = "llmscale.data.formats.hub:parts_of_dataset"


class BadText(Exception):
    """A source does not hold what it should; the message names the place."""


class Part(Protocol):
    """Some documents in a fixed order. Dataclasses: they travel to workers and into a fingerprint."""

    @property
    def size(self) -> int:
        """Bytes to read, for the progress bar."""
        ...

    def documents(self) -> Iterator[str | None]:
        """Each document's text; None for one that is not UTF-8 text.

        Raises:
            BadText: when the source is damaged or has no text where it should.
        """
        ...


@dataclass(frozen=True)
class SourceOptions:
    text_key: str = "text"
    """Field of a JSON line or column of a table that holds the text."""
    suffixes: tuple[str, ...] = ()
    """Ends of file names that are taken from folders. Empty: those of `FORMATS` and `.txt`."""
    exclude: tuple[str, ...] = ()
    """Names of folders inside folders that are left out; hidden ones always are."""


@dataclass(frozen=True)
class TextFiles:
    """Whole files, each one document."""

    files: tuple[tuple[str, int, int], ...]
    """(path, bytes, time of change in ns) of each."""

    @property
    def size(self) -> int:
        return sum(size for _, size, _ in self.files)

    def documents(self) -> Iterator[str | None]:
        for name, _, _ in self.files:
            try:
                yield Path(name).read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                yield None
            except OSError as error:
                raise BadText(str(error)) from None


@dataclass
class _Plan:
    """Parts in order; neighbouring whole files are gathered into parts of a good size."""

    parts: list[Part] = field(default_factory=list)
    files: list[tuple[str, int, int]] = field(default_factory=list)

    def add_file(self, file: Path) -> None:
        stat = file.stat()
        self.files.append((str(file), stat.st_size, stat.st_mtime_ns))
        if sum(size for _, size, _ in self.files) >= PART_BYTES:
            self.close()

    def add_parts(self, parts: Sequence[Part]) -> None:
        self.close()
        self.parts += parts

    def close(self) -> None:
        if self.files:
            self.parts.append(TextFiles(tuple(self.files)))
            self.files = []


def parts_of_sources(sources: Sequence[str], options: SourceOptions) -> list[Part]:
    """Cut every source into parts, in the order in which the sources stand; folders in the order of names.

    Raises:
        InputError: with a problem for each source that is missing, empty or unreadable.
    """
    plan = _Plan()
    problems: list[Problem] = []
    for source in sources:
        try:
            _add_source(plan, source, options)
        except (BadText, OSError) as error:
            problems.append(Problem("INPUT", source, str(error)))
        except ImportError as error:
            message = f"needs the package {error.name}: pip install 'llmscale[data]'"
            problems.append(Problem("INPUT", source, message))
    plan.close()
    if not plan.parts and not problems:
        problems.append(Problem("INPUT", "", "names nothing to read"))
    if problems:
        raise InputError(problems)
    return plan.parts


def _add_source(plan: _Plan, source: str, options: SourceOptions) -> None:
    if source.startswith(HUB_PREFIX):
        plan.add_parts(_resolve(HUB)(source.removeprefix(HUB_PREFIX), options))
        return
    path = Path(source)
    if not path.exists():
        raise BadText("no such file or folder")
    if path.is_file():
        _add_file(plan, path, options)
        return
    suffixes = options.suffixes or (*FORMATS, ".txt")
    files = [file for file in _files_under(path, options.exclude) if file.name.endswith(suffixes)]
    if not files:
        raise BadText(f"holds no file that ends with {', '.join(suffixes)}; say which to take with --suffix")
    for file in files:
        _add_file(plan, file, options)


def _add_file(plan: _Plan, file: Path, options: SourceOptions) -> None:
    for suffix, function in FORMATS.items():
        if file.name.endswith(suffix):
            plan.add_parts(_resolve(function)(file, options))
            return
    plan.add_file(file)


def _files_under(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and entry.name not in exclude:
            yield from _files_under(entry, exclude)


def _resolve(name: str):
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
