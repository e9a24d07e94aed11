"""Real ranks joined by gloo: save, load under another layout, and agree on every error."""

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.store import Store, verify
from llmscale.config.schema import CheckpointSection
from tests.checkpoint.checkpoint_layouts import deal, make_tensors
from tests.checkpoint.failing_disk import READS, Disk

fork = multiprocessing.get_context("fork")
SAVE_OPERATIONS, LOAD_OPERATIONS = 60, 40
"""More than either has on one rank."""


def run_ranks(folder: Path, world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, world_size, *arguments)` returns in each of the ranks."""
    store = folder / f"store-{os.urandom(4).hex()}"
    results = fork.SimpleQueue()
    ranks = [
        fork.Process(target=_rank_main, args=(rank, world_size, store, results, work, arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found = dict(results.get() for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert not [value for value in found.values() if isinstance(value, str) and "Traceback" in value], found
    return [found[rank] for rank in range(world_size)]


def _rank_main(
    rank: int, world_size: int, store: Path, results: Any, work: Callable[..., Any], arguments: Any
):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{store}", timeout, world_size, rank)
    try:
        results.put((rank, work(rank, world_size, *arguments)))
    except Exception:
        results.put((rank, traceback.format_exc()))
    dist.destroy_process_group()


def begin(folder: Path, rank: int, world_size: int, pieces, **options):
    checkpointer = Checkpointer(
        folder, rank, world_size, CheckpointSection(**options), dist.group.WORLD, {"ranks": world_size}
    )
    return checkpointer, checkpointer.load_newest(pieces)


def save_steps(rank: int, world_size: int, folder: Path, steps: list[int]) -> list[tuple[int, str]]:
    pieces = deal(make_tensors(0), world_size, 1).ranks[rank]
    checkpointer, _ = begin(folder, rank, world_size, pieces)
    for step in steps:
        checkpointer.save(step, deal(make_tensors(step), world_size, 1).ranks[rank], {"step": step})
    checkpointer.wait()
    return [(outcome.step, outcome.state) for outcome in checkpointer.poll()]


def load_as(rank: int, world_size: int, folder: Path, bad_disk: tuple[int, str] | None = None):
    """Load; `bad_disk` names a rank and the step whose reads fail there."""
    layout = deal(make_tensors(0), world_size, 9 + world_size, replicas=True, blank=True)
    if bad_disk and bad_disk[0] == rank:
        _break_reads(bad_disk[1])
    try:
        _, loaded = begin(folder, rank, world_size, layout.ranks[rank])
    except CheckpointError as error:
        return str(error), any(piece.data.any() for piece in layout.ranks[rank])
    assert loaded is not None
    expected = make_tensors(loaded.step)
    exact = all(
        torch.equal(piece.data, expected[piece.name][piece.box.slices]) for piece in layout.ranks[rank]
    )
    return loaded.step, len(loaded.passed_over), exact, loaded.progress


def _break_reads(step: str) -> None:
    """From now on, reading a shard of `step` fails in this process."""
    real = os.preadv

    def failing(descriptor: int, *arguments: Any) -> int:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if step in name and name.endswith(".safetensors"):
            raise OSError(5, "Input/output error")
        return real(descriptor, *arguments)

    os.preadv = failing


@pytest.mark.parametrize(("writers", "readers"), [(2, 3), (4, 2), (3, 1)])
def test_save_and_load_under_another_layout(tmp_path: Path, writers: int, readers: int) -> None:
    outcomes = run_ranks(tmp_path, writers, save_steps, tmp_path / "c", [1, 2, 3])
    assert outcomes == [[(1, "committed"), (2, "committed"), (3, "committed")]] * writers
    assert run_ranks(tmp_path, readers, load_as, tmp_path / "c") == [(3, 0, True, {"step": 3})] * readers


@pytest.mark.parametrize("bad_rank", [0, 2])
def test_a_bad_disk_on_one_rank_turns_all_to_the_step_before(tmp_path: Path, bad_rank: int) -> None:
    run_ranks(tmp_path, 2, save_steps, tmp_path / "c", [1, 2])
    found = run_ranks(tmp_path, 3, load_as, tmp_path / "c", (bad_rank, "step-00000002"))
    assert found == [(1, 1, True, {"step": 1})] * 3
    assert len(list((tmp_path / "c").glob(".step-00000002.*.set-aside"))) == 1


def test_a_disk_that_fails_everywhere_is_the_same_error_on_all_ranks(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, save_steps, tmp_path / "c", [1, 2])
    found = run_ranks(tmp_path, 3, load_as, tmp_path / "c", (1, "step-"))
    assert len(set(found)) == 1
    message, changed = found[0]
    assert "Input/output error" in message and not changed


def fail_on_one_rank(rank: int, world_size: int, folder: Path, bad_rank: int) -> list[tuple[int, str, str]]:
    pieces = deal(make_tensors(1), world_size, 1).ranks[rank]
    checkpointer, _ = begin(folder, rank, world_size, pieces)
    real = os.write

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        os.write = full if step == 1 and rank == bad_rank else real
        checkpointer.save(step, pieces, {"step": step})
        checkpointer.wait()
    return [(outcome.step, outcome.state, outcome.reason) for outcome in checkpointer.poll()]


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_a_full_disk_on_one_rank_fails_the_save_on_all(tmp_path: Path, bad_rank: int) -> None:
    found = run_ranks(tmp_path, 3, fail_on_one_rank, tmp_path / "c", bad_rank)
    assert found[0] == found[1] == found[2]
    (first, second) = found[0]
    assert first[:2] == (1, "failed")
    assert second == (2, "committed", "")
    # A writer that was late may have put a file into what was just being removed; the next start clears it.
    assert not list((tmp_path / "c").glob("*.partial"))
    Store(tmp_path / "c").clean()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"epochs", "step-00000002"}


def strike_each_operation_of_a_save(
    rank: int, world_size: int, folder: Path, bad_rank: int
) -> list[tuple[str, str]]:
    """Save step after step; in each, the next operation of the bad rank on the disk fails."""
    pieces = deal(make_tensors(1), world_size, 1).ranks[rank]
    checkpointer, _ = begin(folder, rank, world_size, pieces)
    disk = Disk(setattr)
    outcomes = []
    for at in range(SAVE_OPERATIONS):
        disk.arm(at if rank == bad_rank else -1)
        checkpointer.save(at + 1, pieces, {})
        outcome = checkpointer.wait()
        disk.arm(-1)
        assert outcome is not None
        outcomes.append((outcome.state, outcome.reason))
    checkpointer.save(SAVE_OPERATIONS + 1, pieces, {})
    outcome = checkpointer.wait()
    assert outcome is not None and outcome.state == "committed"
    return outcomes


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_an_error_at_any_point_of_a_save_hangs_no_rank(tmp_path: Path, bad_rank: int) -> None:
    first, second = run_ranks(tmp_path, 2, strike_each_operation_of_a_save, tmp_path / "c", bad_rank)
    assert first == second
    failed = [reason for state, reason in first if state == "failed"]
    assert len(failed) > 8
    # An error after the commit, or in telling of an error, need not fail the save.
    assert all("Input/output error" in reason or "another rank" in reason for reason in failed)
    found = Store(tmp_path / "c").checkpoints()
    assert found and all(verify(one) == [] for one in found)


def strike_each_operation_of_a_load(
    rank: int, world_size: int, folder: Path, bad_rank: int
) -> list[tuple[str, object]]:
    """Resume copies of a run; in each, the next operation of the bad rank on the disk fails."""
    disk = Disk(setattr, READS)
    found: list[tuple[str, object]] = []
    for at in range(LOAD_OPERATIONS):
        pieces = deal(make_tensors(0), world_size, 9, blank=True).ranks[rank]
        disk.arm(at if rank == bad_rank else -1)
        try:
            _, loaded = begin(folder / f"copy-{at}", rank, world_size, pieces)
            disk.arm(-1)
            assert loaded is not None
            expected = make_tensors(loaded.step)
            assert all(torch.equal(piece.data, expected[piece.name][piece.box.slices]) for piece in pieces)
            found.append(("loaded", loaded.step))
        except CheckpointError as error:
            disk.arm(-1)
            assert not any(piece.data.any() for piece in pieces)
            found.append(("refused", str(error)))
    return found


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_an_error_at_any_point_of_a_load_hangs_no_rank(tmp_path: Path, bad_rank: int) -> None:
    run_ranks(tmp_path, 2, save_steps, tmp_path / "c", [1, 2])
    for at in range(LOAD_OPERATIONS):
        shutil.copytree(tmp_path / "c", tmp_path / "copies" / f"copy-{at}")
    first, second = run_ranks(tmp_path, 2, strike_each_operation_of_a_load, tmp_path / "copies", bad_rank)
    assert first == second
    assert ("loaded", 2) in first and len(set(first)) > 1
