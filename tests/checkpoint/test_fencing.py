"""A writer that is stopped in a save and goes on after its successor has taken over, in real processes."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.store import Store, verify
from llmscale.config.schema import CheckpointSection
from tests.checkpoint.kills import Writers, pieces_of


def resume(folder: Path) -> tuple[Checkpointer, int]:
    checkpointer = Checkpointer(folder, 0, 1, CheckpointSection(keep_last=100))
    pieces = pieces_of(-1)
    loaded = checkpointer.load_newest(pieces)
    assert loaded is not None and all((piece.data == loaded.step).all() for piece in pieces)
    assert not loaded.passed_over
    return checkpointer, loaded.step


def save(checkpointer: Checkpointer, step: int) -> None:
    checkpointer.save(step, pieces_of(step), {"line": "of the successor"})
    outcome = checkpointer.wait()
    assert outcome is not None and outcome.state == "committed", outcome


def stop_and_continue(folder: Path, rounds: int, seed: int) -> int:
    """Returns how many of the stopped writers were told that they are out."""
    chance, refused = random.Random(seed), 0
    for _ in range(rounds):
        old = Writers.start(folder, 1)
        try:
            assert old.hear()[0] == "resumed"
            assert old.hear()[0] == "committed"
            time.sleep(chance.uniform(0, 0.02))
            os.kill(old.processes[0].pid, signal.SIGSTOP)
            told = [step for word, step in old.hear_the_rest() if word == "committed"]
            new, step = resume(folder)
            assert not told or step >= told[-1]
            save(new, step + 1)
            os.kill(old.processes[0].pid, signal.SIGCONT)
            words = [old.hear()[0] for _ in range(3)]
            save(new, step + 2)
        finally:
            old.close()
        # What it says of the save that it was stopped in may go either way; later ones cannot commit.
        assert words[1:] == ["failed", "failed"]
        refused += words[0] == "failed"
        _, after = resume(folder)
        assert after == step + 2
        found = {one.step: one for one in Store(folder).checkpoints() if one.state == "committed"}
        for mine in (step + 1, step + 2):
            manifest = found[mine].manifest
            assert manifest is not None and manifest.progress == {"line": "of the successor"}
            assert verify(found[mine]) == []
    return refused


def test_a_stopped_writer_cannot_commit_over_its_successor(tmp_path: Path) -> None:
    assert stop_and_continue(tmp_path / "checkpoints", 12, seed=1) > 0


@pytest.mark.soak
def test_many_stopped_writers_cannot_commit_over_their_successors(tmp_path: Path) -> None:
    assert stop_and_continue(tmp_path / "checkpoints", 200, seed=2) > 100
