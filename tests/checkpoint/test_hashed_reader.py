"""Bytes of a shard get out only from blocks whose hash is right, whatever is read in whatever order."""

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llmscale.checkpoint.errors import DamagedCheckpoint
from llmscale.checkpoint.hashed_reader import HashedShardReader
from llmscale.checkpoint.manifest import ShardEntry, shard_file
from llmscale.checkpoint.shards import HostImage, slot_of
from llmscale.model.regions import Box, Piece
from tests.checkpoint.checkpoint_layouts import deal, make_tensors

BLOCK = 160


def write_shard(folder: Path, pieces: list[Piece]) -> tuple[ShardEntry, HostImage]:
    """A shard hashed in far smaller blocks than a save makes, so that many of them matter."""
    image = HostImage(pieces)
    image.copy_from(pieces)
    data = bytes(image.bytes_view)
    (folder / shard_file(0)).write_bytes(data)
    blocks = tuple(
        hashlib.sha256(data[start : start + BLOCK]).hexdigest() for start in range(0, len(data), BLOCK)
    )
    return ShardEntry(file=shard_file(0), byte_count=len(data), block_bytes=BLOCK, blocks=blocks), image


def random_part(box: Box, choose: random.Random) -> Box:
    start = tuple(choose.randrange(size) for size in box.size)
    size = tuple(choose.randrange(1, size - first + 1) for first, size in zip(start, box.size))
    return Box(start, size).shifted(box.start)


@pytest.mark.parametrize("seed", range(6))
def test_random_parts_in_random_order(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    pieces = deal(make_tensors(seed), 1, seed).ranks[0]
    shard, image = write_shard(tmp_path, pieces)
    parts = [(piece, random_part(piece.box, choose)) for piece in choose.choices(pieces, k=80)]
    wanted = choose.sample(range(len(shard.blocks)), choose.randrange(len(shard.blocks)))
    with ThreadPoolExecutor(2) as pool:
        reader = HashedShardReader(tmp_path, shard, image.layout, wanted, pool)
        for piece, part in parts:
            found = torch.zeros(part.size, dtype=piece.data.dtype)
            reader.read(slot_of(piece), part, found)
            inside = part.shifted(tuple(-start for start in piece.start))
            assert torch.equal(found, piece.data[inside.slices])
        reader.close()


def test_what_changes_after_the_opening_does_not_get_out(tmp_path: Path) -> None:
    """Exactly the reads that touch the damaged block are refused."""
    data = torch.arange(4096.0).reshape(64, 64)
    piece = Piece("weight", (64, 64), (0, 0), data)
    shard, image = write_shard(tmp_path, [piece])
    first_byte = len(image.layout.header)
    at = first_byte + 30 * 256 + 5
    refused = []
    with ThreadPoolExecutor(2) as pool:
        reader = HashedShardReader(tmp_path, shard, image.layout, [], pool)
        with (tmp_path / shard.file).open("r+b") as file:
            file.seek(at)
            file.write(b"\xff")
        for row in range(64):
            found = torch.zeros(1, 64)
            try:
                reader.read(slot_of(piece), Box((row, 0), (1, 64)), found)
                assert torch.equal(found[0], data[row])
            except DamagedCheckpoint as damage:
                assert "are not those that were saved" in str(damage)
                refused.append(row)
        reader.close()
    block = at // BLOCK
    touched = [
        row
        for row in range(64)
        if (first_byte + row * 256) // BLOCK <= block <= (first_byte + row * 256 + 255) // BLOCK
    ]
    assert refused == touched and 30 in refused
