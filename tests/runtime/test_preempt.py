"""Ranks that are signalled at different moments stop after the same step."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import torch.distributed as distributed

from llmscale.runtime import stop_signal
from llmscale.runtime.preempt import agreed


def step_until_agreed(rank: int, folder: str) -> None:
    stop_signal.install()
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for step in range(1, 10_000):
        if rank == 1 and step == 30:
            os.kill(os.getpid(), signal.SIGUSR1)
        if agreed():
            (Path(folder) / f"stopped-{rank}").write_text(str(step))
            break
        time.sleep(0.001 * rank)
    distributed.destroy_process_group()


def test_all_ranks_stop_after_the_same_step(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=step_until_agreed, args=(rank, str(tmp_path))) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)] == ["30", "30"]


def test_a_world_of_one_asks_itself() -> None:
    assert not agreed()
