"""SIGKILL at random moments of saving, in real processes that share nothing but the folder."""

import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.shards import HostImage, tensor_entries
from llmscale.checkpoint.store import Store, inspect, verify
from llmscale.checkpoint.writer import SaveRequest, commit_parts, write_part
from llmscale.config.schema import CheckpointSection
from llmscale.model.regions import Piece

KILLS, SOAK_KILLS = 120, 2_000
OPTIONS = CheckpointSection(keep_last=2)
ROWS = 3_000

fork = multiprocessing.get_context("fork")


def pieces_of(step: int, ranks: int = 1, rank: int = 0) -> list[Piece]:
    """One rank's rows of two matrices whose every element is the step."""
    share = ROWS // ranks
    data = torch.full((share, 16), float(step))
    return [Piece(name, (ROWS, 16), (rank * share, 0), data.clone()) for name in ("a", "b")]


def train(folder: Path, committed: Connection) -> None:
    """A rank that goes on from where the run was, saves step after step and tells what is committed."""
    torch.set_num_threads(1)
    checkpointer = Checkpointer(folder, 0, 1, OPTIONS)
    pieces = pieces_of(-1)
    loaded = checkpointer.load_newest(pieces)
    step = loaded.step if loaded else 0
    sound = loaded is None or all((piece.data == step).all() for piece in pieces) and not loaded.passed_over
    committed.send(step if sound else -1)
    while True:
        step += 1
        checkpointer.save(step, pieces_of(step), {"step": step})
        outcome = checkpointer.wait()
        committed.send(step if outcome and outcome.state == "committed" else -1)


def kill_and_restart(folder: Path, kills: int, seed: int) -> None:
    choose = random.Random(seed)
    newest = 0
    for kill in range(kills):
        reading, writing = fork.Pipe(duplex=False)
        process = fork.Process(target=train, args=(folder, writing), daemon=True)
        process.start()
        writing.close()
        assert reading.poll(30), f"kill {kill}: the run did not start again"
        first = reading.recv()
        assert first >= newest, f"kill {kill}: step {newest} was committed, and the run went on from {first}"
        newest = first
        time.sleep(choose.uniform(0, 0.04))
        process.kill()
        process.join()
        while reading.poll():
            try:
                step = reading.recv()
            except EOFError:
                break
            assert step > newest
            newest = step
        reading.close()
    assert newest > kills // 4


def test_kills_while_saving_lose_nothing(tmp_path: Path) -> None:
    kill_and_restart(tmp_path, KILLS, seed=1)


@pytest.mark.soak
def test_many_kills_while_saving_lose_nothing(tmp_path: Path) -> None:
    kill_and_restart(tmp_path, SOAK_KILLS, seed=2)


def save_as(folder: Path, rank: int, first_step: int) -> None:
    """One of two ranks that save step after step, meeting in the folder only."""
    torch.set_num_threads(1)
    store = Store(folder)
    for step in range(first_step, first_step + 1000):
        request = SaveRequest(store, step, f"{step:032x}", 1, rank, 2, {}, {}, timeout_seconds=5)
        if rank == 0:
            store.begin(step, request.save_id)
        while not request.partial.exists() and not store.committed(step).exists():
            time.sleep(0.001)
        pieces = pieces_of(step, 2, rank)
        image = HostImage(pieces)
        image.copy_from(pieces)
        write_part(request, image, tensor_entries(pieces, rank))
        if rank == 0:
            commit_parts(request)
            store.prune(1, 2, None)
        while not store.committed(step).exists():
            time.sleep(0.001)


def test_one_of_two_writers_dies(tmp_path: Path) -> None:
    """What is committed is whole and of one step, whichever rank dies at whichever moment."""
    (tmp_path / "epochs").mkdir()
    (tmp_path / "epochs" / "00000001").touch()
    choose = random.Random(3)
    newest = 0
    for kill in range(25):
        ranks = [
            fork.Process(target=save_as, args=(tmp_path, rank, newest + 1), daemon=True) for rank in (0, 1)
        ]
        for process in ranks:
            process.start()
        time.sleep(choose.uniform(0.02, 0.12))
        victims = choose.sample(ranks, 2)
        victims[0].kill()
        time.sleep(choose.uniform(0, 0.01))
        victims[1].kill()
        for process in ranks:
            process.join()
        Store(tmp_path).clean()
        found = Store(tmp_path).checkpoints()
        assert all(one.state == "committed" for one in found)
        steps = [one.step for one in found]
        assert steps == [] or steps[-1] >= newest, f"kill {kill}"
        newest = steps[-1] if steps else newest
        if found:
            assert verify(inspect(found[-1].path)) == []
            assert_one_step(found[-1].path, newest)
    assert newest > 10


def assert_one_step(path: Path, step: int) -> None:
    for rank in (0, 1):
        values = torch.frombuffer(
            bytearray((path / f"shard-{rank:05d}.safetensors").read_bytes()[-64:]), dtype=torch.float32
        )
        assert (values == step).all()
