"""The part of a save that goes on behind training: hash, write, prove, commit.

No collectives here, so nothing can mix with training's. Ranks meet in the partial folder: each leaves
its shard and, once that is durable, `shard-N.json` (or `shard-N.failed.json` with the reason); rank 0
waits for all of them, proves that every element is stored exactly once, and commits.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from llmscale.checkpoint.coverage import stored_faults
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.files import open_folder, publish, read_small, write_new
from llmscale.checkpoint.hashing import blocks_of, check_shard, hash_blocks
from llmscale.checkpoint.manifest import (
    Manifest,
    Part,
    ShardEntry,
    TensorEntry,
    canonical_json,
    json_object,
    parse,
    shard_file,
)
from llmscale.checkpoint.shards import HostImage, merge_entries
from llmscale.checkpoint.store import MANIFEST_LIMIT, Store

FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.005, 0.25
ABANDONED_SECONDS = 30.0
"""How long rank 0 still waits for others once its own training has ended without waiting for the save."""


@dataclass(frozen=True)
class SaveRequest:
    """All that a save needs to know, fixed when it is asked for."""

    store: Store
    step: int
    save_id: str
    epoch: int
    rank: int
    world_size: int
    progress: Mapping[str, JsonValue]
    description: Mapping[str, JsonValue]
    timeout_seconds: float

    @property
    def partial(self) -> Path:
        return self.store.partial(self.step, self.save_id)


def write_part(request: SaveRequest, image: HostImage, tensors: dict[str, TensorEntry]) -> None:
    """Write this rank's shard, prove by rereading that it is there, then tell rank 0.

    Raises:
        OSError: the disk refuses. CheckpointError: what was read back is not what was written.
    """
    file = shard_file(request.rank)
    with ThreadPoolExecutor(1) as beside:
        hashes = beside.submit(hash_blocks, image.bytes_view)
        write_new(request.partial / file, blocks_of(image.bytes_view))
    shard = ShardEntry(file=file, byte_count=len(image.bytes_view), blocks=hashes.result())
    faults = check_shard(request.partial, shard)
    if faults:
        raise CheckpointError("; ".join(faults))
    _tell(
        request,
        _part_name(request.rank),
        Part(save_id=request.save_id, shard=shard, tensors=tensors).to_bytes(),
    )


def report_failure(request: SaveRequest, reason: str) -> None:
    """Tell rank 0 not to wait for this rank; its shard goes first, to make room for saying so.

    Where there is no room even then, taking the folder away needs none, and says it as well.
    """
    try:
        (request.partial / shard_file(request.rank)).unlink(missing_ok=True)
        _tell(request, _failure_name(request.rank), canonical_json({"reason": reason}))
    except OSError:
        request.store.abandon(request.step, request.save_id)


def commit_parts(request: SaveRequest) -> Manifest:
    """Rank 0: wait for all parts, prove coverage, commit.

    Raises:
        CheckpointError: a rank failed or does not answer, or the parts do not make whole tensors.
        OSError: the disk refuses.
    """
    parts = _wait_for_parts(request)
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        for name, entry in part.tensors.items():
            known = tensors.get(name)
            tensors[name] = merge_entries(name, known, entry) if known else entry
    faults = stored_faults(tensors)
    if faults:
        raise CheckpointError("the ranks' pieces do not make whole tensors: " + "; ".join(faults))
    for rank in range(request.world_size):
        (request.partial / _part_name(rank)).unlink()
    manifest = Manifest(
        save_id=request.save_id,
        epoch=request.epoch,
        step=request.step,
        saved_at=round(time.time(), 3),
        progress=json_object(request.progress),
        description=json_object(request.description),
        shards=tuple(part.shard for part in parts),
        tensors=tensors,
    )
    request.store.commit(manifest)
    return manifest


def _wait_for_parts(request: SaveRequest) -> list[Part]:
    deadline = time.monotonic() + request.timeout_seconds
    abandoned = time.monotonic() + ABANDONED_SECONDS
    pause = FIRST_LOOK_SECONDS
    missing = set(range(request.world_size))
    while True:
        if not request.partial.exists():
            raise CheckpointError("another rank has failed and could not write down why")
        present = {path.name for path in request.partial.iterdir()}
        for rank in sorted(missing):
            if _failure_name(rank) in present:
                reason = json.loads(read_small(request.partial / _failure_name(rank), MANIFEST_LIMIT))[
                    "reason"
                ]
                raise CheckpointError(f"rank {rank}: {reason}")
        missing = {rank for rank in missing if _part_name(rank) not in present}
        if not missing:
            return [_read_part(request, rank) for rank in range(request.world_size)]
        if threading.main_thread().is_alive():
            abandoned = time.monotonic() + ABANDONED_SECONDS
        if time.monotonic() > min(deadline, abandoned):
            raise CheckpointError(f"ranks {sorted(missing)} have not finished their part in time")
        time.sleep(pause)
        pause = min(2 * pause, LAST_LOOK_SECONDS)


def _read_part(request: SaveRequest, rank: int) -> Part:
    path = request.partial / _part_name(rank)
    part = parse(Part, read_small(path, MANIFEST_LIMIT), path)
    if part.save_id != request.save_id or part.shard.file != shard_file(rank):
        raise CheckpointError(f"{path}: belongs to another save or rank")
    return part


def _tell(request: SaveRequest, name: str, data: bytes) -> None:
    folder = open_folder(request.partial)
    try:
        publish(name, data, folder)
    finally:
        os.close(folder)


def _part_name(rank: int) -> str:
    return f"shard-{rank:05d}.json"


def _failure_name(rank: int) -> str:
    return f"shard-{rank:05d}.failed.json"


def describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error) or type(error).__name__
