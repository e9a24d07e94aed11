"""Ranks for tests: fresh processes, forked in milliseconds from a server that has torch, Megatron and
DeepSpeed loaded, joined by gloo."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "llmscale.engine.engine", "llmscale.objectives.causal_lm", "tests.preload"]
TIMEOUT_SECONDS = 240

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Any]:
    """Call `function(rank, *arguments)` in `world_size` ranks with an initialised process group.

    Returns what each returned, in order of rank.

    Raises:
        AssertionError: a rank failed (with its traceback), or the ranks hang.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        results = _context.SimpleQueue()
        processes = [
            _context.Process(
                target=_rank_main, args=(rank, world_size, folder, results, function, arguments), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            return _collect(processes, results, timeout_seconds)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(processes: list[Any], results: Any, timeout_seconds: float) -> list[Any]:
    found: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(found) < len(processes):
        if not results._reader.poll(0.2):
            dead = [i for i, p in enumerate(processes) if p.exitcode not in (None, 0) and i not in found]
            assert not dead, f"ranks {dead} died: exit codes {[processes[i].exitcode for i in dead]}"
            assert time.monotonic() < deadline, (
                f"ranks {sorted(set(range(len(processes))) - set(found))} hang"
            )
            continue
        rank, value, error = results.get()
        assert error is None, f"rank {rank} failed:\n{error}"
        found[rank] = pickle.loads(value)
    return [found[rank] for rank in range(len(processes))]


def _rank_main(
    rank: int,
    world_size: int,
    folder: str,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch  # noqa: PLC0415  (the server has it; the parent may not)

    from llmscale.parallel.device import prepare_cpu  # noqa: PLC0415

    torch.set_num_threads(1)
    # As the ranks of a run do: collections need not go through what the server has imported.
    gc.freeze()
    prepare_cpu()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'store'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    try:
        # By value: multiprocessing would pass tensors as files that die with this process.
        results.put((rank, pickle.dumps(function(rank, *arguments)), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise
    finally:
        torch.distributed.destroy_process_group()
