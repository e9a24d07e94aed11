"""Files of JSON lines that survive crashes: whole lines count, torn ones do not."""

import json
import os
from collections.abc import Iterator
from pathlib import Path


def append_line(path: Path, line: str) -> None:
    """Append `line` in one write and bring it to disk. A torn last line is closed off first."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + line + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of `path` that are whole JSON objects; nothing where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if is_whole(line):
                yield line.decode()


def is_whole(line: bytes) -> bool:
    """Whether `line` is a JSON object with its line end."""
    if not line.endswith(b"\n"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
