"""SHA-256 over blocks of a shard: computed while it is written, checked by many threads and ranks when read.

With the processor's SHA instructions this runs at the speed of a good disk, and `hashlib` lets other
threads run meanwhile.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmscale.checkpoint.errors import DamagedCheckpoint
from llmscale.checkpoint.files import open_regular, read_exactly
from llmscale.checkpoint.manifest import BLOCK_BYTES, ShardEntry

READ_BYTES = 1 << 20
THREADS = min(4, os.cpu_count() or 1)


def blocks_of(image: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(image), BLOCK_BYTES):
        yield image[start : start + BLOCK_BYTES]


def hash_blocks(image: memoryview) -> tuple[str, ...]:
    return tuple(hash_of(block) for block in blocks_of(image))


def hash_of(block: memoryview) -> str:
    return hashlib.sha256(block).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 over the hashes of a file's blocks, which threads compute side by side.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        starts = range(0, size, BLOCK_BYTES)
        with ThreadPoolExecutor(THREADS) as pool:
            blocks = pool.map(
                lambda start: _hash_range(descriptor, start, min(start + BLOCK_BYTES, size), path), starts
            )
            return hashlib.sha256("".join(blocks).encode()).hexdigest()
    finally:
        os.close(descriptor)


def block_fault(path: Path, start: int, stop: int) -> str:
    return f"{path}: bytes {start}-{stop - 1} are not those that were saved"


def check_blocks(folder: Path, wanted: Iterable[tuple[ShardEntry, int]]) -> list[str]:
    """Reread the given blocks and compare their hashes. Returns what is wrong, by file and range."""
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(lambda block: _check_block(folder, *block), wanted)
        return [fault for fault in faults if fault]


def check_shard(folder: Path, shard: ShardEntry) -> list[str]:
    return check_blocks(folder, ((shard, index) for index in range(len(shard.blocks)))) + check_size(
        folder, shard
    )


def check_size(folder: Path, shard: ShardEntry) -> list[str]:
    """A shard must be a regular file of the stated size."""
    path = folder / shard.file
    try:
        descriptor = open_regular(path)
    except DamagedCheckpoint as error:
        return [str(error)]
    try:
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    return [] if size == shard.byte_count else [f"{path}: {size} bytes, {shard.byte_count} expected"]


def _check_block(folder: Path, shard: ShardEntry, index: int) -> str | None:
    path = folder / shard.file
    start = index * shard.block_bytes
    stop = min(start + shard.block_bytes, shard.byte_count)
    try:
        descriptor = open_regular(path)
        try:
            found = _hash_range(descriptor, start, stop, path)
        finally:
            os.close(descriptor)
    except DamagedCheckpoint as error:
        return str(error)
    return None if found == shard.blocks[index] else block_fault(path, start, stop)


def _hash_range(descriptor: int, start: int, stop: int, path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(READ_BYTES, stop - start)))
    for offset in range(start, stop, READ_BYTES):
        chunk = buffer[: min(READ_BYTES, stop - offset)]
        read_exactly(descriptor, offset, chunk, path)
        digest.update(chunk)
    return digest.hexdigest()
