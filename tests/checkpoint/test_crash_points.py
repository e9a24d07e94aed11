"""A save stopped or refused by the disk at every single operation that changes the file system."""

import errno
import os
from pathlib import Path

import pytest
import torch

from llmscale.checkpoint.checkpointer import Checkpointer, SaveOutcome
from llmscale.checkpoint.store import Store, verify
from llmscale.config.schema import CheckpointSection
from llmscale.model.regions import Piece
from tests.checkpoint.failing_disk import Disk, Killed

OPTIONS = CheckpointSection(keep_last=2, asynchronous=True)


def pieces_of(step: int) -> list[Piece]:
    return [Piece(name, (6, 4), (0, 0), torch.full((6, 4), float(step))) for name in ("a", "b")]


def start(folder: Path) -> tuple[Checkpointer, int | None]:
    """A fresh process of the run; the step it goes on from, proven to be unmixed."""
    checkpointer = Checkpointer(folder, 0, 1, OPTIONS)
    pieces = pieces_of(-1)
    loaded = checkpointer.load_newest(pieces)
    if loaded is not None:
        assert all((piece.data == loaded.step).all() for piece in pieces)
        assert loaded.passed_over == ()
    return checkpointer, loaded.step if loaded else None


def save(checkpointer: Checkpointer, step: int) -> SaveOutcome:
    checkpointer.save(step, pieces_of(step), {})
    outcome = checkpointer.wait()
    assert outcome is not None
    return outcome


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"epochs"}


def all_sound(folder: Path) -> list[int]:
    found = Store(folder).checkpoints()
    assert all(one.state == "committed" and verify(one) == [] for one in found)
    return [one.step for one in found]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_the_disk_refuses_each_operation_in_turn(tmp_path: Path, monkeypatch, code: int) -> None:
    """The save fails and says why, nothing is left of it, older steps stay, and the next save works."""
    disk = Disk(monkeypatch.setattr)
    checkpointer, _ = start(tmp_path)
    for step in (1, 2):
        save(checkpointer, step)
    step, at, failures = 3, 0, 0
    while True:
        before = set(all_sound(tmp_path))
        disk.arm(at, lambda: OSError(code, os.strerror(code)))
        outcome = save(checkpointer, step)
        done = disk.count <= at
        disk.arm(-1, Killed)
        if outcome.state == "failed":
            failures += 1
            assert os.strerror(code) in outcome.reason
            assert set(all_sound(tmp_path)) == before
            assert names(tmp_path) == {f"step-{one:08d}" for one in before}, f"litter after operation {at}"
        else:
            assert step in all_sound(tmp_path)
        step, at = step + 1, at + 1
        if done:
            break
    assert failures > 12 and outcome.state == "committed" and outcome.reason == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_process_dies_before_each_operation_in_turn(tmp_path: Path, monkeypatch) -> None:
    """The next start goes on from the step before or from this one, whole, and clears the rest away."""
    disk = Disk(monkeypatch.setattr)
    resumed, at = set(), 0
    while True:
        folder = tmp_path / str(at)
        checkpointer, _ = start(folder)
        for step in (1, 2):
            save(checkpointer, step)
        disk.arm(at, Killed)
        try:
            checkpointer.save(3, pieces_of(3), {})
            checkpointer.wait()
        except Killed:
            pass
        survived = disk.count <= at
        disk.arm(-1, Killed)
        _, step = start(folder)
        assert step in (2, 3)
        assert names(folder) == {f"step-{one:08d}" for one in all_sound(folder)}
        resumed.add(step)
        at += 1
        if survived:
            break
    assert resumed == {2, 3} and at > 20
