"""What a program does to a folder, operation by operation, and what a disk may have kept of it.

The recorder stands between the program and the functions of `os`, in all threads. A `Disk` is a small
model of a file system: inodes, and folders that give them names. Playing all recorded operations on it must
give the very folder that is really there, which proves that the recorder misses nothing.

What survives a power loss follows the weakest promise that POSIX makes, as ALICE (Pillai et al., OSDI 2014)
and CrashMonkey (Mohan et al., OSDI 2018) take it: `fsync` of a file keeps its bytes and not its name,
`fsync` of a folder keeps its names and not what they lead to. All else may be kept or lost, in any order;
one name's own changes keep their order, and a rename is one change.
"""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Fate = Literal["kept", "lost", "torn", "zeros"]
"""Of bytes that are not synced: all there, none, the first half, or a file of that length full of zeros."""


@dataclass(frozen=True)
class Operation:
    kind: Literal["link", "unlink", "rename", "write", "sync"]
    inode: int
    """The folder whose names change; or the file that is written; or either, synced."""
    name: str = ""
    target: int = 0
    """link and rename: the inode that the name leads to."""
    is_folder: bool = False
    new_name: str = ""
    """rename: what it is called from now on, in the same folder."""
    offset: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        named = f"{self.name} -> {self.new_name}" if self.kind == "rename" else self.name
        return f"{self.kind} {named}" + (f" ({len(self.data)} bytes)" if self.kind == "write" else "")


@dataclass
class Disk:
    """Inode 0 is the root. A folder is a dict of names, a file a bytearray."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytearray] = field(default_factory=dict)

    def apply(self, operation: Operation, fate: Fate = "kept") -> None:
        if operation.kind == "link":
            if operation.is_folder:
                self.folders.setdefault(operation.target, {})
            else:
                self.files.setdefault(operation.target, bytearray())
        if fate == "lost":
            return
        names = self.folders.get(operation.inode, {})
        if operation.kind == "link":
            names[operation.name] = operation.target
        elif operation.kind == "unlink":
            names.pop(operation.name, None)
        elif operation.kind == "rename":
            names.pop(operation.name, None)
            names[operation.new_name] = operation.target
        elif operation.kind == "write":
            self._write(operation, fate)

    def _write(self, operation: Operation, fate: Fate) -> None:
        data = operation.data[: len(operation.data) // 2] if fate == "torn" else operation.data
        content = self.files[operation.inode]
        content.extend(bytes(max(0, operation.offset + len(data) - len(content))))
        if fate != "zeros":
            content[operation.offset : operation.offset + len(data)] = data

    def tree(self, inode: int = 0, path: str = "") -> dict[str, bytes | None]:
        """All that can be reached: path to bytes, None for a folder."""
        found: dict[str, bytes | None] = {}
        for name, target in sorted(self.folders[inode].items()):
            place = f"{path}{name}"
            if target in self.folders:
                found[place] = None
                found |= self.tree(target, place + "/")
            else:
                found[place] = bytes(self.files[target])
        return found


def read_tree(root: Path) -> dict[str, bytes | None]:
    """The same of a real folder."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def write_tree(tree: dict[str, bytes | None], root: Path) -> None:
    root.mkdir()
    for place, content in tree.items():  # folders come before what is in them
        if content is None:
            (root / place).mkdir()
        else:
            (root / place).write_bytes(content)


@dataclass
class Recorder:
    """Takes down what happens below `root`, an empty folder, while it is installed."""

    root: Path
    operations: list[Operation] = field(default_factory=list)
    committed: list[tuple[int, int]] = field(default_factory=list)
    """(number of operations before it, step) of each commit that the program was told of."""
    disk: Disk = field(default_factory=Disk)
    _open: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Descriptor to inode, and the name by which it was opened."""
    _positions: dict[int, int] = field(default_factory=dict)
    """Descriptor to the place of the next write."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _inodes: int = 0

    def install(self, patch: Callable[[object, str, object], None]) -> None:
        """`patch` is `monkeypatch.setattr`, or does the same."""
        for name in ("open", "close", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"):
            patch(os, name, self._between(getattr(os, name), getattr(self, f"_after_{name}")))

    def note_commit(self, step: int) -> None:
        with self._lock:
            self.committed.append((len(self.operations), step))

    def _between(self, real: Callable, after: Callable) -> Callable:
        def operation(*arguments, **options):
            with self._lock:
                result = real(*arguments, **options)
                after(result, *arguments, **options)
                return result

        return operation

    def _record(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.disk.apply(operation)

    def _place(self, path: Path | str, folder: int | None = None) -> tuple[int, str] | None:
        """(inode of the folder, name); None outside of the root."""
        if folder is not None:
            if folder not in self._open:
                return None
            return self._open[folder][0], str(path)
        absolute = Path(path).absolute()
        if self.root not in absolute.parents:
            return None
        inode = 0
        *above, name = absolute.relative_to(self.root).parts
        for part in above:
            inode = self.disk.folders[inode][part]
        return inode, name

    def _after_open(self, descriptor: int, path: Path | str, flags: int, mode: int = 0o777, *, dir_fd=None):
        if dir_fd is None and Path(path).absolute() == self.root:
            self._open[descriptor] = (0, "/")
            return
        place = self._place(path, dir_fd)
        if place is None:
            return
        assert not flags & (os.O_APPEND | os.O_TRUNC), "the model knows no appending and no truncating"
        inode, name = place
        if name not in self.disk.folders[inode]:
            self._inodes += 1
            self._record(Operation("link", inode, name, self._inodes))
        self._open[descriptor] = (self.disk.folders[inode][name], name)

    def _after_close(self, _: None, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        self._positions.pop(descriptor, None)

    def _after_write(self, count: int, descriptor: int, data: bytes | memoryview) -> None:
        if descriptor in self._open:
            inode, name = self._open[descriptor]
            position = self._positions.get(descriptor, 0)
            content = bytes(memoryview(data).cast("B")[:count])
            self._record(Operation("write", inode, name, offset=position, data=content))
            self._positions[descriptor] = position + count

    def _after_fsync(self, _: None, descriptor: int) -> None:
        if descriptor in self._open:
            self._record(Operation("sync", *self._open[descriptor]))

    def _after_mkdir(self, _: None, path: Path | str, mode: int = 0o777, *, dir_fd=None) -> None:
        place = self._place(path, dir_fd)
        if place is not None:
            self._inodes += 1
            self._record(Operation("link", place[0], place[1], self._inodes, is_folder=True))

    def _after_rename(
        self, _: None, source: Path | str, target: Path | str, *, src_dir_fd=None, dst_dir_fd=None
    ):
        old, new = self._place(source, src_dir_fd), self._place(target, dst_dir_fd)
        if old is None and new is None:
            return
        assert old is not None and new is not None and old[0] == new[0], "a rename stays in its folder"
        inode = self.disk.folders[old[0]][old[1]]
        self._record(Operation("rename", old[0], old[1], inode, new_name=new[1]))

    def _after_unlink(self, _: None, path: Path | str, *, dir_fd=None) -> None:
        place = self._place(path, dir_fd)
        if place is not None:
            self._record(Operation("unlink", place[0], place[1]))

    _after_rmdir = _after_unlink


def unsynced(operations: Iterable[Operation]) -> list[int]:
    """Numbers of the operations that no later `fsync` has made durable."""
    pending: dict[int, list[int]] = {}
    for number, operation in enumerate(operations):
        if operation.kind == "sync":
            pending.pop(operation.inode, None)
        else:
            pending.setdefault(operation.inode, []).append(number)
    return sorted(number for numbers in pending.values() for number in numbers)
