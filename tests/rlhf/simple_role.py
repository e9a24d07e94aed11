"""A role without a model, for pools in tests."""

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from llmscale.config.problems import InputError, Problem
from llmscale.parallel.distributed import connect
from llmscale.parallel.environment import RankEnvironment
from llmscale.runtime.final import FinalFailure


class Simple:
    def __init__(self, environment: RankEnvironment, number: int) -> None:
        connect(environment, "gloo")
        self.rank = environment.rank
        self.number = number

    def described(self) -> int:
        return self.number

    def pid(self) -> int:
        return os.getpid()

    def add(self, number: int) -> int:
        """Remember a sum, which is in no file."""
        self.number += number
        return self.number

    def together(self, seconds: Sequence[float]) -> float:
        """A collective, before which each rank sleeps as long as it is told."""
        time.sleep(seconds[self.rank])
        summed = torch.ones(1)
        dist.all_reduce(summed)
        return summed.item()

    def sleep(self, seconds: Sequence[float]) -> None:
        time.sleep(seconds[self.rank])

    def fail(self, kind: str, rank: int) -> float:
        """One rank raises, and the others wait for it."""
        if self.rank == rank:
            if kind == "input":
                raise InputError([Problem("a.key", 3, "is wrong")])
            if kind == "final":
                raise FinalFailure("nothing helps")
            raise ValueError("something went wrong")
        return self.together([0.0, 0.0])


def open_simple(environment: RankEnvironment, **arguments: Any) -> Simple:
    return Simple(environment, **arguments)
