"""Joining the other ranks, and leaving them."""

import os
from datetime import timedelta
from typing import Any

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
    # DeepSpeed insists on the variable, whoever started this process.
    os.environ.setdefault("LOCAL_RANK", str(environment.local_rank))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            backend,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
            **_meeting(environment),
        )
    return device


def _meeting(environment: RankEnvironment) -> dict[str, Any]:
    """Where the ranks meet; a world of one meets nobody and needs no port."""
    if environment.world_size == 1:
        return {"store": torch.distributed.HashStore()}  # pyright: ignore[reportPrivateImportUsage]
    return {"init_method": f"tcp://{environment.master_address}:{environment.master_port}"}


def disconnect() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
