"""Reading a shard so that no byte gets out whose hash has not been found right on the way.

Hashing first and reading afterwards would trust the disk, the network and the memory in between to say
the same twice, and on several nodes the hash of one to vouch for what another one reads.
"""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from llmscale.checkpoint.errors import DamagedCheckpoint
from llmscale.checkpoint.files import read_exactly
from llmscale.checkpoint.hashing import THREADS, block_fault, hash_of
from llmscale.checkpoint.manifest import ShardEntry
from llmscale.checkpoint.shards import ShardLayout, ShardReader

KEPT_BLOCKS = 2 * THREADS
"""So many blocks at most are in memory: read ahead by the threads, or kept for the next read nearby."""


class HashedShardReader(ShardReader):
    """A `ShardReader` that takes all bytes from blocks that it has hashed in memory.

    `wanted` are the numbers of the blocks that will be read; threads of `pool` read and hash them ahead.

    Raises:
        DamagedCheckpoint: here and in `read`, where a block is not what was saved.
    """

    def __init__(
        self,
        folder: Path,
        shard: ShardEntry,
        layout: ShardLayout,
        wanted: Iterable[int],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._shard, self._pool = shard, pool
        self._ahead = sorted({0, *wanted}, reverse=True)
        self._blocks: OrderedDict[int, Future[memoryview]] = OrderedDict()
        """Least recently used first."""
        self._longest = min(shard.block_bytes, shard.byte_count)
        self._memory: dict[int, bytearray] = {}
        self._spare: list[bytearray] = []
        """Memory of blocks that are not needed any more, each of the longest block's size."""
        if shard.byte_count != layout.byte_count:
            raise DamagedCheckpoint(f"{folder / shard.file}: not of the size that the manifest's boxes need")
        super().__init__(folder / shard.file, layout)

    def close(self) -> None:
        for block in self._blocks.values():
            block.cancel()
        for block in self._blocks.values():  # a thread may still be reading
            if not block.cancelled():
                block.exception()
        super().close()

    def _fill(self, offset: int, target: memoryview) -> None:
        size, end = self._shard.block_bytes, offset + len(target)
        for index in range(offset // size, -(-end // size)):
            block, start = self._block(index), index * size
            first, last = max(offset, start), min(end, start + len(block))
            target[first - offset : last - offset] = block[first - start : last - start]

    def _bytes(self, offset: int, count: int) -> bytearray | memoryview:
        """Without a copy where they lie in one block."""
        index, first = divmod(offset, self._shard.block_bytes)
        if first + count > self._shard.block_bytes:
            return super()._bytes(offset, count)
        return self._block(index)[first : first + count]

    def _block(self, index: int) -> memoryview:
        self._begin(index)
        self._blocks.move_to_end(index)
        while self._ahead and self._ahead[-1] <= index:
            self._ahead.pop()
        while self._ahead and sum(begun > index for begun in self._blocks) < THREADS:
            self._begin(self._ahead.pop())
        return self._blocks[index].result()

    def _begin(self, index: int) -> None:
        if index in self._blocks:
            return
        while len(self._blocks) >= KEPT_BLOCKS:
            number, oldest = self._blocks.popitem(last=False)
            oldest.exception()  # waits until the thread has let go of the memory
            self._spare.append(self._memory.pop(number))
        self._memory[index] = self._spare.pop() if self._spare else bytearray(self._longest)
        self._blocks[index] = self._pool.submit(self._read_and_hash, index, self._memory[index])

    def _read_and_hash(self, index: int, memory: bytearray) -> memoryview:
        start = index * self._shard.block_bytes
        stop = min(start + self._shard.block_bytes, self._shard.byte_count)
        block = memoryview(memory)[: stop - start]
        read_exactly(self._descriptor, start, block, self._path)
        if hash_of(block) != self._shard.blocks[index]:
            raise DamagedCheckpoint(block_fault(self._path, start, stop))
        return block
