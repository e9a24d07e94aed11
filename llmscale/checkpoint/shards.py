"""One rank's pieces as one safetensors file, whose exact image lies in host memory.

The image is laid out once for a list of pieces and used again for each save: taking a snapshot is one
copy of each piece into its place. The layout follows from the boxes alone, so a reader computes the
header of every shard from the manifest and accepts no other, and reads boxes by their offsets.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmscale.checkpoint.errors import DamagedCheckpoint
from llmscale.checkpoint.files import open_regular, read_exactly
from llmscale.checkpoint.manifest import DTYPE_BYTES, Manifest, StoredBox, TensorEntry, box_key
from llmscale.model.regions import Box, Piece

ALIGNMENT = 64
WHOLE_ROW_BYTES = 128 << 10
"""Rows shorter than this are read whole where only a part of each is wanted: fewer reads beat fewer bytes."""
BAND_BYTES = 1 << 20

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """A box inside a shard."""

    name: str
    dtype: str
    box: Box

    @property
    def byte_count(self) -> int:
        return self.box.volume * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class ShardLayout:
    """Where everything lies in a shard, as a function of its slots alone."""

    header: bytes
    """Safetensors header with its length in front."""
    offsets: dict[Slot, int]
    """Byte offsets from the beginning of the file."""
    byte_count: int

    @classmethod
    def of(cls, slots: Iterable[Slot]) -> "ShardLayout":
        """Wide elements first, so that each box is aligned to its element; then by name and start."""
        ordered = sorted(slots, key=lambda slot: (-DTYPE_BYTES[slot.dtype], slot.name, slot.box.start))
        entries, offsets, end = {}, {}, 0
        for slot in ordered:
            offsets[slot] = end
            end += slot.byte_count
            entries[box_key(slot.name, slot.box.start)] = {
                "dtype": slot.dtype,
                "shape": slot.box.size,
                "data_offsets": (offsets[slot], end),
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        return cls(
            header, {slot: len(header) + offset for slot, offset in offsets.items()}, len(header) + end
        )

    def byte_range(self, slot: Slot, part: Box) -> tuple[int, int]:
        """First byte of the rows of a stored box that hold `part` of it, and the byte after them."""
        first, count, rows = 0, 1, 1
        if slot.box.size:
            first, count, rows = part.start[0] - slot.box.start[0], part.size[0], slot.box.size[0]
        row_bytes = slot.byte_count // rows
        return self.offsets[slot] + first * row_bytes, self.offsets[slot] + (first + count) * row_bytes

    @classmethod
    def of_shards(cls, manifest: Manifest) -> "list[ShardLayout]":
        slots: list[list[Slot]] = [[] for _ in manifest.shards]
        for name, tensor in manifest.tensors.items():
            for box in tensor.boxes:
                slots[box.shard].append(Slot(name, tensor.dtype, Box(box.start, box.size)))
        return [cls.of(of_shard) for of_shard in slots]


class HostImage:
    """Host memory of a shard's exact size (pinned for CUDA tensors) with a view of each piece's place."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.signature = signature_of(pieces)
        self.layout = ShardLayout.of(slot_of(piece) for piece in pieces)
        on_device = any(piece.data.is_cuda for piece in pieces)
        self.memory = torch.empty(
            self.layout.byte_count, dtype=torch.uint8, device="cpu", pin_memory=on_device
        )
        self.bytes_view = self.memory.numpy().data
        self.bytes_view[: len(self.layout.header)] = self.layout.header
        self.views = [self._view(slot_of(piece)) for piece in pieces]
        """Each piece's place, in the order of the pieces."""
        self.names = [piece.name for piece in pieces]

    def _view(self, slot: Slot) -> Tensor:
        offset = self.layout.offsets[slot]
        raw = self.memory[offset : offset + slot.byte_count]
        return raw.view(TORCH_DTYPES[slot.dtype]).view(slot.box.size)

    def copy_from(self, pieces: Sequence[Piece]) -> None:
        """Take the pieces' values; returns when they are all here."""
        for view, piece in zip(self.views, pieces, strict=True):
            view.copy_(piece.data, non_blocking=True)
        self._finish_copies(pieces)

    def not_finite(self) -> list[str]:
        """Names of the tensors of which a value here is a NaN or infinite."""
        return [
            name
            for name, view in zip(self.names, self.views)
            if view.is_floating_point()
            and view.numel()
            and not torch.stack(torch.aminmax(view)).isfinite().all()
        ]

    def copy_to(self, pieces: Sequence[Piece]) -> None:
        with torch.no_grad():
            for view, piece in zip(self.views, pieces, strict=True):
                piece.data.copy_(view, non_blocking=True)
        self._finish_copies(pieces)

    def _finish_copies(self, pieces: Sequence[Piece]) -> None:
        for device in {piece.data.device for piece in pieces if piece.data.is_cuda}:
            torch.cuda.synchronize(device)


def slot_of(piece: Piece) -> Slot:
    return Slot(piece.name, DTYPE_NAMES[piece.data.dtype], piece.box)


def signature_of(pieces: Sequence[Piece]) -> tuple[object, ...]:
    """Equal for lists of pieces that fit the same image."""
    return tuple(
        (piece.name, piece.shape, piece.start, piece.data.shape, piece.data.dtype) for piece in pieces
    )


def tensor_entries(pieces: Sequence[Piece], shard: int) -> dict[str, TensorEntry]:
    """What the manifest says about these pieces.

    Raises:
        ValueError: a name that cannot be a key, or pieces of one tensor that disagree on shape or type.
    """
    entries: dict[str, TensorEntry] = {}
    for piece in pieces:
        if not piece.name or "@" in piece.name:
            raise ValueError(f"{piece.name!r} cannot be the name of a stored tensor")
        stored = StoredBox(start=piece.start, size=tuple(piece.data.shape), shard=shard)
        entry = TensorEntry(shape=piece.shape, dtype=DTYPE_NAMES[piece.data.dtype], boxes=(stored,))  # pyright: ignore[reportArgumentType]
        known = entries.get(piece.name)
        entries[piece.name] = merge_entries(piece.name, known, entry) if known else entry
    return entries


def merge_entries(name: str, first: TensorEntry, second: TensorEntry) -> TensorEntry:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        raise ValueError(f"{name}: {first.dtype} {first.shape} here and {second.dtype} {second.shape} there")
    return first.model_copy(update={"boxes": first.boxes + second.boxes})


class ShardReader:
    """Reads parts of the boxes of one shard.

    By offset with plain reads: through a memory map a failing disk would be a SIGBUS instead of an error.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self._path, self._layout = path, layout
        self._descriptor = open_regular(path)
        try:
            if os.fstat(self._descriptor).st_size != layout.byte_count:
                raise DamagedCheckpoint(f"{path}: not of the size that the manifest's boxes need")
            header = bytearray(len(layout.header))
            self._fill(0, memoryview(header))
            if header != layout.header:
                raise DamagedCheckpoint(f"{path}: its header does not list the boxes of the manifest")
        except DamagedCheckpoint:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def _fill(self, offset: int, target: memoryview) -> None:
        read_exactly(self._descriptor, offset, target, self._path)

    def read(self, slot: Slot, part: Box, target: Tensor) -> None:
        """Read `part` of a stored box (both in the tensor's coordinates) into `target`, of its shape."""
        inside = part.shifted(tuple(-start for start in slot.box.start))
        self._read(self._layout.offsets[slot], slot.box.size, inside, target)

    def _read(self, offset: int, stored: tuple[int, ...], part: Box, target: Tensor) -> None:
        row_bytes = target.element_size()
        for size in stored[1:]:
            row_bytes *= size
        first = part.start[0] if stored else 0
        offset += first * row_bytes
        if part.size[1:] == stored[1:]:
            self._read_run(offset, target)
        elif row_bytes < WHOLE_ROW_BYTES:
            self._read_band(offset, stored[1:], row_bytes, part, target)
        else:
            row = Box(part.start[1:], part.size[1:])
            for index in range(part.size[0]):
                self._read(offset + index * row_bytes, stored[1:], row, target[index])

    def _read_run(self, offset: int, target: Tensor) -> None:
        """Consecutive bytes, straight into place where that is consecutive, too."""
        if target.is_contiguous():
            self._fill(offset, memory_of(target))
        else:
            target.copy_(self._elements(offset, tuple(target.shape), target.dtype))

    def _read_band(
        self, offset: int, row: tuple[int, ...], row_bytes: int, part: Box, target: Tensor
    ) -> None:
        """Whole rows, of which the wanted columns go into place."""
        rows = max(1, min(part.size[0], BAND_BYTES // row_bytes))
        columns = Box(part.start[1:], part.size[1:]).slices
        for first in range(0, part.size[0], rows):
            count = min(rows, part.size[0] - first)
            band = self._elements(offset + first * row_bytes, (count, *row), target.dtype)
            target[first : first + count].copy_(band[(slice(0, count), *columns)])

    def _elements(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Consecutive elements, good until the next read."""
        data = self._bytes(offset, math.prod(shape) * dtype.itemsize)
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def _bytes(self, offset: int, count: int) -> bytearray | memoryview:
        data = bytearray(count)
        self._fill(offset, memoryview(data))
        return data


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous host tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def header_faults(folder: Path, manifest: Manifest) -> list[str]:
    """Shards whose headers do not list the manifest's boxes."""
    faults = []
    for shard, layout in zip(manifest.shards, ShardLayout.of_shards(manifest), strict=True):
        try:
            ShardReader(folder / shard.file, layout).close()
        except DamagedCheckpoint as error:
            faults.append(str(error))
    return faults
