"""A role that adds, on real process groups: what tests of pools and groups call."""

import os
import signal
import time
from collections.abc import Sequence

import torch
import torch.distributed

from llmscale.config.schema import ParallelSection
from llmscale.parallel.distributed import connect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.rlhf.workers.group import speaks


class Summing:
    def __init__(self, environment: RankEnvironment, tensor: int, pipeline: int) -> None:
        device = connect(environment)
        layout = Layout.of(ParallelSection(tensor=tensor, pipeline=pipeline), environment.world_size)
        self.world = World(layout, device)

    def described(self) -> dict[str, int]:
        return {"rank": self.world.rank, "pid": os.getpid()}

    def squares(self, numbers: Sequence[int], more: int) -> list[int] | None:
        """Each number squared; over the ranks of its replica, so that all must have the same numbers."""
        total = torch.tensor([float(number) for number in numbers] or [0.0])
        torch.distributed.all_reduce(total, group=self.world.model_group)
        mean = (total / self.world.model_group.size()).tolist()
        assert mean[: len(numbers)] == [float(number) for number in numbers]
        if not speaks(self.world.layout, self.world.rank):
            return None
        return [number * number + more for number in numbers]

    def die(self, rank: int) -> None:
        if self.world.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier(self.world.control_group)

    def sleep(self, rank: int) -> None:
        if self.world.rank == rank:
            time.sleep(1000)

    def fail(self, rank: int) -> None:
        if self.world.rank == rank:
            raise ValueError("it does not add up")
        torch.distributed.barrier(self.world.control_group)


def opened(environment: RankEnvironment, tensor: int = 1, pipeline: int = 1) -> Summing:
    return Summing(environment, tensor, pipeline)
