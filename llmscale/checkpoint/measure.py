"""What saving and loading cost on this machine: `python -m llmscale.checkpoint.measure [MiB]`.

Speeds and ratios, each against a plain operation on the same bytes at the same time. The step that a stall
is compared with is one of plain torch: as many weights as the state has (a master and two moments each),
forward and backward over `TOKENS` tokens, and AdamW.
"""

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
TOKENS = 4096
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


def step_seconds(megabytes: int) -> float:
    """Time of a training step of a model whose whole state is of this size."""
    width = 1024
    layers = max(1, (megabytes << 20) // (12 * width * width))
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randn(TOKENS, width)

    def step() -> None:
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()

    step()
    return seconds_of(step)


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

    read = median_seconds((folder / "plain").read_bytes)
    step = step_seconds(megabytes)

    print(f"{len(pieces)} pieces, {megabytes} MiB; median of {REPEATS}")
    for name, seconds in {
        "a memory copy": copy,
        "a plain write and fsync": write,
        "a plain read (from memory, as loads here)": read,
        "a save until it is durable": save,
        "verifying all hashes": verified,
        "loading the same layout": same,
        "loading another layout": different,
    }.items():
        print(f"{name:42} {1000 * seconds:8.1f} ms {megabytes / seconds:8.0f} MiB/s")
    print(f"a save holds the step up for   {stall / copy:6.2f} x one memory copy of the same bytes")
    print(f"                               {100 * stall / step:6.2f} % of a step of {step:.2f} s")
    print(f"a save is durable after        {save / write:6.2f} x a plain write and fsync")
    print(f"verifying all hashes takes     {verified / save:6.2f} x the save")
    print(f"loading the same layout takes  {same / write:6.2f} x a plain write and fsync")
    print(f"loading another layout takes   {different / same:6.2f} x loading the same")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else 256, Path(scratch))
