"""Files that are whole and durable, or absent, and reading that trusts no file to be what it seems."""

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from llmscale.checkpoint.errors import DamagedCheckpoint

Bytes = bytes | memoryview
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

REMOVAL_ATTEMPTS = 10


def write_new(path: Path | str, chunks: Iterable[Bytes], folder: int | None = None) -> None:
    """Write a file that must not exist yet, and make its bytes durable.

    `folder` is an open folder that `path` is relative to.
    """
    descriptor = os.open(path, CREATE, 0o644, dir_fd=folder)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(name: str, data: bytes, folder: int) -> None:
    """Make `name` appear in the open folder with all of its bytes at once."""
    unfinished = f".{name}.unfinished"
    write_new(unfinished, [data], folder)
    os.rename(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)


def open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = open_folder(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_durable_folder(path: Path) -> None:
    """Make a folder and what is missing above it, and make all of their names durable.

    Also those of folders that were there: another part of this start may have made them a moment ago. Up to
    the file system's own root, as far as they may be opened.
    """
    path.mkdir(parents=True, exist_ok=True)
    device = path.stat().st_dev
    for folder in (path, *path.absolute().parents):
        if folder.stat().st_dev != device or not os.access(folder, os.R_OK):
            return
        sync_folder(folder)


def open_regular(path: Path) -> int:
    """Open a file for reading; links, devices and pipes are refused.

    Raises:
        DamagedCheckpoint: it is not there, or not a regular file.
    """
    try:
        descriptor = os.open(path, READ)
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedCheckpoint(f"{path}: not a regular file")
    return descriptor


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most `limit` bytes.

    Raises:
        DamagedCheckpoint: it is not there, not a regular file, too long or unreadable.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise DamagedCheckpoint(f"{path}: {size} bytes, at most {limit} expected")
        return read_exactly(descriptor, 0, bytearray(size), path)
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, offset: int, target: bytearray | memoryview, path: Path) -> bytes:
    """Fill `target` from `offset` on; returns it as bytes only where it is a bytearray."""
    rest = memoryview(target)
    while rest:
        try:
            count = os.preadv(descriptor, [rest], offset)
        except OSError as error:
            raise DamagedCheckpoint(f"{path}: bytes from {offset} on: {error.strerror}") from error
        if count == 0:
            raise DamagedCheckpoint(f"{path}: ends at byte {offset}, {len(rest)} more expected")
        rest, offset = rest[count:], offset + count
    return bytes(target) if isinstance(target, bytearray) else b""


def remove_folder(path: Path, doomed: Path) -> None:
    """Remove a folder in one step as far as others can see: it is renamed to `doomed` first.

    Durably so before the first file goes, or a power loss could leave it half empty under its old name.
    Another rank that was just creating a file there may still get it in: then once more.
    """
    path.rename(doomed)
    sync_folder(doomed.parent)
    for attempts_left in reversed(range(REMOVAL_ATTEMPTS)):
        try:
            shutil.rmtree(doomed)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not attempts_left:
                raise
