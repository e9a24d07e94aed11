"""Joining the other ranks, and leaving them."""

import os
from datetime import timedelta

import torch
import torch.distributed

from llmscale.parallel.device import has_cuda, rank_device
from llmscale.parallel.environment import RankEnvironment


def connect(
    environment: RankEnvironment, backend: str = "auto", timeout: timedelta = timedelta(minutes=30)
) -> torch.device:
    """Join the process group that `environment` describes; returns this rank's device.

    Args:
        environment: who and where this rank is.
        backend: "gloo", "nccl", or "auto" (nccl where there is CUDA).
        timeout: how long a collective waits for the others.
    """
    device = rank_device(environment.local_rank)
    if backend == "auto":
        backend = "nccl" if has_cuda() else "gloo"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            backend,
            init_method=f"tcp://{environment.master_address}:{environment.master_port}",
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
        )
    return device


def disconnect() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def use_threads(threads: int | None, ranks_on_machine: int) -> int:
    """Give this rank its share of the machine's cores; returns how many."""
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // ranks_on_machine)
    torch.set_num_threads(threads)
    return threads
