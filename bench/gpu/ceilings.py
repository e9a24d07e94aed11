"""What the device can do at best, measured: bytes that a copy moves, and operations of bf16 products."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.gpu.clock import Work, seconds_of_each, warm_up
from bench.gpu.device import datasheet_flops_per_second, device_name

Shape = tuple[int, int, int]
"""Rows × inner × columns of `A @ B.T`, as a linear layer computes it."""

SHAPES: tuple[Shape, ...] = (
    *((size, size, size) for size in (4096, 8192, 16384)),
    *((16384, 2048, 16384), (16384, 8192, 2048), (16384, 3072, 16384), (16384, 8192, 3072)),
)
"""Squares, and what models of 1 and 3 billion parameters do."""
QUICK_SHAPES: tuple[Shape, ...] = ((256, 256, 256), (512, 512, 512))
COPIED_BYTES, QUICK_COPIED_BYTES = 1 << 31, 1 << 25
TURNS, QUICK_TURNS = 30, 3


@dataclass(frozen=True)
class Ceilings:
    bytes_per_second: float
    """Read and written, by a copy of a large tensor."""
    flops_per_second: float
    """The best product of bf16 matrices, of `shape`."""
    shape: Shape
    datasheet_flops_per_second: float | None
    """Of dense bf16 matrices; None where no data sheet is known."""


def measured_ceilings(device: torch.device, quick: bool) -> Ceilings:
    turns = QUICK_TURNS if quick else TURNS
    rates = {shape: product_rate(shape, turns, device) for shape in (QUICK_SHAPES if quick else SHAPES)}
    best = max(rates, key=lambda shape: rates[shape])
    return Ceilings(
        bytes_per_second=copy_rate(QUICK_COPIED_BYTES if quick else COPIED_BYTES, turns, device),
        flops_per_second=rates[best],
        shape=best,
        datasheet_flops_per_second=datasheet_flops_per_second(device_name(device)),
    )


def copy_rate(size: int, turns: int, device: torch.device) -> float:
    """Bytes a second, those that are read and those that are written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), turns, device)


def product_rate(shape: Shape, turns: int, device: torch.device) -> float:
    """Operations a second, a multiply-add counted as two; of random numbers, as zeros take less power."""
    rows, inner, columns = shape
    a, b = (torch.randn(size, inner, device=device).bfloat16() for size in (rows, columns))
    return 2 * rows * inner * columns / seconds(lambda: F.linear(a, b), turns, device)


def seconds(work: Work, turns: int, device: torch.device) -> float:
    warm_up(work, device)
    return seconds_of_each({"": work}, turns, device)[""]
