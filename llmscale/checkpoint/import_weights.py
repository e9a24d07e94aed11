"""Weights of a Hugging Face folder as a committed checkpoint without optimizer state, slab by slab."""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from llmscale.checkpoint.epochs import claim_epoch, record_start
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.files import Bytes, write_new
from llmscale.checkpoint.hashing import check_shard
from llmscale.checkpoint.manifest import (
    BLOCK_BYTES,
    Manifest,
    ShardEntry,
    StoredBox,
    TensorEntry,
    json_object,
    shard_file,
)
from llmscale.checkpoint.shards import ShardLayout, Slot, memory_of
from llmscale.checkpoint.store import Store
from llmscale.checkpoint.tensor_files import TensorFiles
from llmscale.config.problems import InputError, Problem
from llmscale.model.regions import Box

STEP = 0
MASTERS = "F32"
"""What checkpoints keep of weights, whatever the model computes in."""


def import_weights(
    source: TensorFiles,
    shapes: Mapping[str, tuple[int, ...]],
    store: Store,
    description: Mapping[str, JsonValue],
    on_bytes: Callable[[int], None],
) -> Path:
    """Commit the tensors that `shapes` names as step 0 of a store that has nothing yet.

    Where a tensor is to have more rows than the source has, the new ones are the mean of the old ones.

    Raises:
        InputError: a value is not finite. DamagedCheckpoint: the source cannot be read.
        OSError: the disk refuses. CheckpointError: what was written cannot be read back.
    """
    epoch, save_id = claim_epoch(store.folder, 0), uuid.uuid4().hex
    record_start(store.folder, epoch, None)
    partial = store.begin(STEP, save_id)
    slots = [Slot(name, MASTERS, Box((0,) * len(shape), shape)) for name, shape in shapes.items()]
    layout = ShardLayout.of(slots)
    hashes = BlockHashes()
    write_new(partial / shard_file(0), hashes.over(_bytes_of(source, layout, on_bytes)))
    shard = ShardEntry(file=shard_file(0), byte_count=layout.byte_count, blocks=hashes.finished())
    faults = check_shard(partial, shard)
    if faults:
        raise CheckpointError("; ".join(faults))
    boxes = {slot.name: StoredBox(start=slot.box.start, size=slot.box.size, shard=0) for slot in slots}
    manifest = Manifest(
        save_id=save_id,
        epoch=epoch,
        step=STEP,
        saved_at=round(time.time(), 3),
        progress={},
        description=json_object(description),
        shards=(shard,),
        tensors={
            name: TensorEntry(shape=shapes[name], dtype=MASTERS, boxes=(box,)) for name, box in boxes.items()
        },
    )
    return store.commit(manifest)


def _bytes_of(source: TensorFiles, layout: ShardLayout, on_bytes: Callable[[int], None]) -> Iterator[Bytes]:
    """The shard from its first byte to its last."""
    yield layout.header
    for slot in sorted(layout.offsets, key=lambda slot: layout.offsets[slot]):
        for values in _masters(source, slot):
            if not values.isfinite().all():
                message = "has a value that is not finite: these weights are spoiled"
                raise InputError([Problem(slot.name, list(slot.box.size), message)])
            yield memory_of(values)
            on_bytes(4 * values.numel())


def _masters(source: TensorFiles, slot: Slot) -> Iterator[Tensor]:
    """The tensor's rows as float32, new ones at the end."""
    for _, slab in source.slabs(slot.name):
        yield slab.float()
    gained = slot.box.size[0] - source.tensors[slot.name].shape[0]
    if gained:
        yield source.mean_row(slot.name).to(torch.float32).repeat(gained, 1)


class BlockHashes:
    """SHA-256 of each block of a file while it is written."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._digest, self._room = hashlib.sha256(), BLOCK_BYTES

    def over(self, chunks: Iterable[Bytes]) -> Iterator[Bytes]:
        for chunk in chunks:
            yield chunk
            rest = memoryview(chunk)
            while rest:
                part, rest = rest[: self._room], rest[self._room :]
                self._digest.update(part)
                self._room -= len(part)
                if not self._room:
                    self._close()

    def finished(self) -> tuple[str, ...]:
        if self._room < BLOCK_BYTES:
            self._close()
        return tuple(self._blocks)

    def _close(self) -> None:
        self._blocks.append(self._digest.hexdigest())
        self._digest, self._room = hashlib.sha256(), BLOCK_BYTES
