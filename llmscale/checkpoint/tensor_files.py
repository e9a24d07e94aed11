"""Named tensors as boxes in safetensors files, read slab by slab: memory stays small, whatever their size.

The files are the shards of one of our checkpoints, or those of a Hugging Face folder, where each tensor is
one box.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from llmscale.checkpoint.coverage import stored_faults
from llmscale.checkpoint.errors import DamagedCheckpoint
from llmscale.checkpoint.hashing import check_blocks, check_size
from llmscale.checkpoint.huggingface_folder import HuggingFaceFolder
from llmscale.checkpoint.manifest import DTYPE_BYTES, Manifest, StoredBox, TensorEntry
from llmscale.checkpoint.shards import TORCH_DTYPES, ShardLayout, ShardReader, Slot
from llmscale.model.regions import Box

SLAB_BYTES = 8 << 20


class TensorSource(ABC):
    """Named tensors that can be had slab by slab."""

    tensors: Mapping[str, TensorEntry]

    @abstractmethod
    def slabs(self, name: str, box: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """A tensor, or a box of it, as blocks of rows in order, each a new host tensor of its stored type.

        Raises:
            DamagedCheckpoint: a file cannot be read, or is not what it was.
        """

    def whole(self, name: str) -> Tensor:
        """A small tensor."""
        return torch.cat([slab for _, slab in self.slabs(name)])

    def mean_row(self, name: str) -> Tensor:
        """Mean over the rows of a matrix, [columns], float64; the same bits wherever it is computed."""
        rows, columns = self.tensors[name].shape
        total = torch.zeros(columns, dtype=torch.float64, device="cpu")
        for _, slab in self.slabs(name):
            total += slab.double().sum(0)
        return total / rows


class TensorFiles(TensorSource):
    """Close it after use (`with`): files stay open once they have been read from."""

    def __init__(
        self, paths: Sequence[Path], layouts: Sequence[ShardLayout], tensors: Mapping[str, TensorEntry]
    ) -> None:
        self.tensors = tensors
        self._paths, self._layouts = paths, layouts
        self._readers: dict[int, ShardReader] = {}
        self._files = ExitStack()

    @classmethod
    def of_checkpoint(cls, folder: Path, manifest: Manifest) -> "TensorFiles":
        paths = [folder / shard.file for shard in manifest.shards]
        return cls(paths, ShardLayout.of_shards(manifest), manifest.tensors)

    @classmethod
    def of_folder(cls, found: HuggingFaceFolder) -> "TensorFiles":
        entries: dict[str, TensorEntry] = {}
        offsets: list[dict[Slot, int]] = [{} for _ in found.files]
        for name, tensor in found.tensors.items():
            whole = Box((0,) * len(tensor.shape), tensor.shape)
            stored = StoredBox(start=whole.start, size=whole.size, shard=tensor.file)
            entries[name] = TensorEntry(shape=tensor.shape, dtype=tensor.dtype, boxes=(stored,))  # pyright: ignore[reportArgumentType]
            offsets[tensor.file][Slot(name, tensor.dtype, whole)] = tensor.offset
        layouts = [ShardLayout(file.header, of, file.byte_count) for file, of in zip(found.files, offsets)]
        return cls([file.path for file in found.files], layouts, entries)

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def slabs(self, name: str, box: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        entry = self.tensors[name]
        box = box or Box((0,) * len(entry.shape), entry.shape)
        row_bytes = max(1, DTYPE_BYTES[entry.dtype] * box.volume // max(1, box.size[0]))
        rows = max(1, SLAB_BYTES // row_bytes)
        for first in range(0, box.size[0], rows):
            count = min(rows, box.size[0] - first)
            slab = Box((box.start[0] + first, *box.start[1:]), (count, *box.size[1:]))
            yield slab, self._read(name, entry, slab)

    def _read(self, name: str, entry: TensorEntry, box: Box) -> Tensor:
        target = torch.empty(box.size, dtype=TORCH_DTYPES[entry.dtype], device="cpu")
        for stored in entry.boxes:
            slot = Slot(name, entry.dtype, Box(stored.start, stored.size))
            part = slot.box.intersection(box)
            if part is not None:
                inside = part.shifted(tuple(-start for start in box.start))
                self._reader(stored.shard).read(slot, part, target[inside.slices])
        return target

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._readers:
            self._readers[shard] = ShardReader(self._paths[shard], self._layouts[shard])
            self._files.callback(self._readers[shard].close)
        return self._readers[shard]


def verify_tensors(folder: Path, manifest: Manifest, names: Set[str]) -> None:
    """Reread and hash what the named tensors of a checkpoint take up in its shards.

    Raises:
        DamagedCheckpoint: something of it is not what was saved.
    """
    faults = stored_faults({name: entry for name, entry in manifest.tensors.items() if name in names})
    faults += [fault for shard in manifest.shards for fault in check_size(folder, shard)]
    wanted: set[tuple[int, int]] = set()
    for number, layout in enumerate(ShardLayout.of_shards(manifest)):
        size = manifest.shards[number].block_bytes
        ranges = [(0, len(layout.header))]
        ranges += [(at, at + slot.byte_count) for slot, at in layout.offsets.items() if slot.name in names]
        wanted |= {
            (number, block) for start, stop in ranges for block in range(start // size, -(-stop // size))
        }
    if not faults:
        faults = check_blocks(folder, ((manifest.shards[shard], block) for shard, block in sorted(wanted)))
    if faults:
        raise DamagedCheckpoint("; ".join(faults))
