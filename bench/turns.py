"""torch's way and llmscale's in one process, turn about, so that a slow moment of the machine hits both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

Work = Callable[[], Tensor]


@dataclass(frozen=True)
class SideBySide:
    """Seconds of each turn."""

    torch: list[float] = field(default_factory=list)
    llmscale: list[float] = field(default_factory=list)

    def take_turns(self, theirs: Work, ours: Work, turns: int) -> None:
        """The first turn of each, in which memory is found and code is loaded, is not counted."""
        for number in range(turns + 1):
            for seconds, work in ((self.torch, theirs), (self.llmscale, ours)):
                began = time.perf_counter()
                work()
                if number:
                    seconds.append(time.perf_counter() - began)

    def summary(self) -> dict[str, Any]:
        """Median and spread of both, and how many times as fast llmscale is."""
        found: dict[str, Any] = {
            name: {"seconds": statistics.median(turns), "spread": spread(turns), "turns": turns}
            for name, turns in vars(self).items()
        }
        return {**found, "ratio": found["torch"]["seconds"] / found["llmscale"]["seconds"]}


def spread(turns: list[float]) -> float:
    """The distance between the quartiles as a share of the median: single turns are often disturbed."""
    low, middle, high = np.quantile(turns, (0.25, 0.5, 0.75))
    return float((high - low) / middle)
