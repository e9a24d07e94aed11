"""What saving and loading cost on this machine, as ratios: `python -m llmscale.checkpoint.measure [MiB]`."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.loader import load_weights
from llmscale.checkpoint.store import Store, verify
from llmscale.config.schema import CheckpointSection
from llmscale.model.regions import Box, Piece, flat_range_boxes

REPEATS = 5
COLUMNS = 512


def make_pieces(megabytes: int, pieces_a_tensor: int) -> list[Piece]:
    """Matrices of 1 MiB and as many vectors, each matrix cut into flat ranges of equal size as ZeRO does."""
    rows = (1 << 20) // (4 * COLUMNS)
    shape = (rows, COLUMNS)
    pieces = []
    for index in range(megabytes):
        matrix = torch.randn(shape)
        ends = [part * rows * COLUMNS // pieces_a_tensor for part in range(pieces_a_tensor + 1)]
        for start, stop in zip(ends, ends[1:]):
            for _, box in flat_range_boxes(shape, start, stop):
                pieces.append(Piece(f"layers.{index}.weight", shape, box.start, matrix[box.slices]))
        pieces.append(Piece(f"layers.{index}.norm", (COLUMNS,), (0,), torch.randn(COLUMNS)))
    return pieces


def column_pieces(pieces: list[Piece]) -> list[Piece]:
    """The same tensors wanted as halves of columns, as another tensor-parallel layout does."""
    shapes = {piece.name: piece.shape for piece in pieces}
    wanted = []
    for name, shape in shapes.items():
        half = shape[-1] // 2
        for first in (0, half):
            box = Box((*(0 for _ in shape[1:]), first), (*shape[:-1], half))
            wanted.append(Piece(name, shape, box.start, torch.empty(box.size)))
    return wanted


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def median_seconds(work: Callable[[], object]) -> float:
    return statistics.median(seconds_of(work) for _ in range(REPEATS))


def plain_write(path: Path, data: memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def measure(megabytes: int, folder: Path) -> None:
    pieces = make_pieces(megabytes, 3)
    one = torch.zeros(sum(piece.data.numel() for piece in pieces))
    other = torch.ones_like(one)
    checkpointer = Checkpointer(folder / "checkpoints", 0, 1, CheckpointSection(keep_last=1))
    checkpointer.load_newest(pieces)
    checkpointer.save(1, pieces, {"step": 1})
    checkpointer.wait()
    steps = iter(range(2, 3 * REPEATS))
    copies, stalls, writes, saves = [], [], [], []
    for _ in range(REPEATS):  # in turn, as other work on the machine comes and goes
        copies.append(seconds_of(lambda: other.copy_(one)))
        stalls.append(seconds_of(lambda: checkpointer.save(next(steps), pieces, {})))
        outcome = checkpointer.wait()
        assert outcome is not None and outcome.state == "committed"
        saves.append(outcome.seconds)
        writes.append(seconds_of(lambda: plain_write(folder / "plain", one.numpy().data.cast("B"))))
    copy, stall, write, save = map(statistics.median, (copies, stalls, writes, saves))
    (newest,) = Store(folder / "checkpoints").checkpoints()
    verified = median_seconds(lambda: verify(newest))
    agreement, columns = Agreement(0, 1, None), column_pieces(pieces)
    same = median_seconds(lambda: load_weights(newest.path, pieces, agreement))
    different = median_seconds(lambda: load_weights(newest.path, columns, agreement))

    print(f"{len(pieces)} pieces, {megabytes} MiB; median of {REPEATS}")
    print(f"a save holds the step up for   {stall / copy:6.2f} x one memory copy of the same bytes")
    print(f"a save is durable after        {save / write:6.2f} x a plain write and fsync")
    print(f"verifying all hashes takes     {verified / save:6.2f} x the save")
    print(f"loading the same layout takes  {same / write:6.2f} x a plain write and fsync")
    print(f"loading another layout takes   {different / same:6.2f} x loading the same")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else 256, Path(scratch))
