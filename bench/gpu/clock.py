"""Seconds of work on a device, in interleaved rounds, each time with caches that hold none of its data.

On GPUs CUDA's events tell the time of the kernels alone. Before each work a large buffer is written: that
takes what is measured out of the L2 cache, and keeps the device busy while the processor starts the work's
kernels, as it runs ahead in training, too. On CPUs the processor's clock is read.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.rounds import median_and_spread

Work = Callable[[], Any]
Mark = torch.cuda.Event | float
"""A moment."""

FLUSHED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 25}
"""On GPUs many times the L2 cache: a third of a millisecond on an H100."""
WARM_UPS = 3
"""Calls that are not counted: kernels are compiled, and memory is reserved."""


def warm_up(work: Work, device: torch.device) -> None:
    for _ in range(WARM_UPS):
        work()
    wait(device)


def seconds_in_rounds(
    works: Mapping[str, Work], rounds: int, turns: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Of each the median over the rounds, and the distance from fastest to slowest as a share of it. A
    round's figure is the median of its turns, in which all go one after the other; they are warm."""
    found = [seconds_of_each(works, turns, device) for _ in range(rounds)]
    return {name: median_and_spread([one[name] for one in found]) for name in works}


def seconds_of_each(works: Mapping[str, Work], turns: int, device: torch.device) -> dict[str, float]:
    flushed = torch.empty(FLUSHED_BYTES[device.type], dtype=torch.uint8, device=device)
    marks: dict[str, list[tuple[Mark, Mark]]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            flushed.zero_()
            began = mark(device)
            work()
            marks[name].append((began, mark(device)))
    wait(device)
    return {name: statistics.median(seconds_between(*pair) for pair in marks[name]) for name in works}


def mark(device: torch.device) -> Mark:
    """Now; on GPUs when all that was asked for is done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first: Mark, last: Mark) -> float:
    if isinstance(first, torch.cuda.Event) and isinstance(last, torch.cuda.Event):
        return first.elapsed_time(last) / 1e3
    assert isinstance(first, float) and isinstance(last, float)
    return last - first


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
