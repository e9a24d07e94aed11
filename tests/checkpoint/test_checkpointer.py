"""One rank of a run: starting, saving behind training, retention, fencing, failures."""

import errno
import os
import random
import resource
import threading
import time
from pathlib import Path

import pytest
import torch

from llmscale.checkpoint import hashing, writer
from llmscale.checkpoint.checkpointer import Checkpointer, SaveOutcome
from llmscale.checkpoint.errors import CheckpointError, SaveFailed
from llmscale.checkpoint.store import MARKER, Store
from llmscale.config.problems import InputError
from llmscale.config.schema import CheckpointSection
from llmscale.model.regions import Piece


def pieces_of(value: float, rows: int = 6) -> list[Piece]:
    return [Piece("weight", (rows, 4), (0, 0), torch.full((rows, 4), float(value)))]


def begin(folder: Path, **options) -> Checkpointer:
    checkpointer = Checkpointer(folder, 0, 1, CheckpointSection(**options))
    checkpointer.load_newest(pieces_of(-1))
    return checkpointer


def save_steps(checkpointer: Checkpointer, *steps: int) -> None:
    for step in steps:
        checkpointer.save(step, pieces_of(step), {"step": step})
        outcome = checkpointer.wait()
        assert outcome is not None and outcome.state == "committed" and outcome.reason == ""


def steps_in(folder: Path) -> list[int]:
    return [found.step for found in Store(folder).checkpoints()]


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Shards are not written before the event is set."""
    go = threading.Event()
    blocks_of = hashing.blocks_of

    def slow(image: memoryview):
        assert go.wait(20)
        return blocks_of(image)

    monkeypatch.setattr(writer, "blocks_of", slow)
    return go


def test_what_is_saved_is_the_moment_of_the_call(tmp_path: Path, slow_disk: threading.Event) -> None:
    checkpointer = begin(tmp_path)
    pieces, progress = pieces_of(5), {"samples": [5]}
    checkpointer.save(5, pieces, progress)
    assert checkpointer.poll() == []
    pieces[0].data.fill_(6)
    progress["samples"].append(6)
    slow_disk.set()
    checkpointer.wait()
    found = pieces_of(-1)
    loaded = Checkpointer(tmp_path, 0, 1, CheckpointSection()).load_newest(found)
    assert loaded is not None and loaded.progress == {"samples": [5]}
    assert (found[0].data == 5).all()


def test_a_second_save_waits_for_the_first(tmp_path: Path, slow_disk: threading.Event) -> None:
    checkpointer = begin(tmp_path)
    checkpointer.save(1, pieces_of(1), {})
    threading.Timer(0.2, slow_disk.set).start()
    checkpointer.save(2, pieces_of(2), {})
    assert steps_in(tmp_path)[0] == 1
    checkpointer.wait()
    assert [(outcome.step, outcome.state) for outcome in checkpointer.poll()] == [
        (1, "committed"),
        (2, "committed"),
    ]
    assert checkpointer.poll() == []


def test_synchronous_saves_are_durable_on_return(tmp_path: Path) -> None:
    checkpointer = begin(tmp_path, asynchronous=False)
    checkpointer.save(1, pieces_of(1), {})
    assert steps_in(tmp_path) == [1]


def test_retention(tmp_path: Path) -> None:
    checkpointer = begin(tmp_path, keep_last=2, keep_every=30)
    save_steps(checkpointer, *range(10, 100, 10))
    assert steps_in(tmp_path) == [30, 60, 80, 90]


def test_retention_spares_what_is_named(tmp_path: Path) -> None:
    checkpointer = begin(tmp_path, keep_last=1)
    for step in (10, 20, 30):
        checkpointer.save(step, pieces_of(step), {}, kept=[10])
    checkpointer.wait()
    assert steps_in(tmp_path) == [10, 30]
    checkpointer.save(40, pieces_of(40), {}, kept=[30])
    checkpointer.wait()
    assert steps_in(tmp_path) == [30, 40], "once there is a better one, it goes like any other"


def test_damaged_checkpoints_do_not_count_for_retention(tmp_path: Path) -> None:
    checkpointer = begin(tmp_path, keep_last=2)
    save_steps(checkpointer, 1, 2)
    (tmp_path / "step-00000002" / "shard-00000.safetensors").write_bytes(b"")
    save_steps(checkpointer, 3)
    assert steps_in(tmp_path) == [1, 2, 3]
    save_steps(checkpointer, 4)
    assert steps_in(tmp_path) == [2, 3, 4]


def test_saving_a_committed_step_again_does_nothing(tmp_path: Path) -> None:
    checkpointer = begin(tmp_path)
    save_steps(checkpointer, 1)
    checkpointer.save(1, pieces_of(99), {})
    outcome = checkpointer.wait()
    assert outcome is not None and outcome.state == "present"
    found = pieces_of(-1)
    Checkpointer(tmp_path, 0, 1, CheckpointSection()).load_newest(found)
    assert (found[0].data == 1).all()


def test_a_writer_that_was_replaced_cannot_commit(tmp_path: Path) -> None:
    old = begin(tmp_path)
    save_steps(old, 1)
    new = begin(tmp_path)
    for step in (2, 1):
        old.save(step, pieces_of(step), {})
        outcome = old.wait()
        assert outcome is not None and outcome.state == "failed" and "start 2" in outcome.reason
    save_steps(new, 2)
    assert steps_in(tmp_path) == [1, 2]


def test_a_commit_that_slips_through_is_not_part_of_history(tmp_path: Path, monkeypatch) -> None:
    """The old writer has looked at the epochs, is halted, and commits after its successor has started."""
    old = begin(tmp_path)
    save_steps(old, 1)
    new = begin(tmp_path)
    with monkeypatch.context() as halted:
        halted.setattr(Store, "refuse_stale", lambda self, epoch: None)
        old.save(5, pieces_of(-5), {})
        old.wait()
    assert [found.state for found in Store(tmp_path).checkpoints()] == ["committed", "fenced"]
    save_steps(new, 2, 5)
    found = pieces_of(-1)
    loaded = Checkpointer(tmp_path, 0, 1, CheckpointSection()).load_newest(found)
    assert loaded is not None and loaded.step == 5 and (found[0].data == 5).all()


def test_litter_of_dead_saves_is_removed_and_foreign_files_are_not(tmp_path: Path) -> None:
    save_steps(begin(tmp_path), 1)
    (tmp_path / f".step-00000002.{'0' * 32}.partial").mkdir()
    (tmp_path / f".step-00000002.{'0' * 32}.partial" / "shard-00000.safetensors").write_bytes(b"torn")
    for foreign in (".step-2.partial", "notes", f".step-00000002.{'0' * 32}.set-aside"):
        (tmp_path / foreign).mkdir()
    begin(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "epochs", "step-00000001", ".step-2.partial", "notes", f".step-00000002.{'0' * 32}.set-aside"
    }  # fmt: skip


def test_a_damaged_newest_step_is_set_aside_and_saved_anew(tmp_path: Path) -> None:
    save_steps(begin(tmp_path), 1, 2)
    (tmp_path / "step-00000002" / MARKER).unlink()
    checkpointer = Checkpointer(tmp_path, 0, 1, CheckpointSection())
    loaded = checkpointer.load_newest(pieces_of(-1))
    assert loaded is not None and loaded.step == 1
    assert "COMMITTED" in loaded.passed_over[0] and loaded.set_aside[0].endswith(".set-aside")
    assert (tmp_path / loaded.set_aside[0] / "shard-00000.safetensors").exists()
    save_steps(checkpointer, 2)


def test_resume_required_and_never(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint.resume"):
        begin(tmp_path, resume="required")
    save_steps(begin(tmp_path), 1, 2)
    begin(tmp_path, resume="required")
    save_steps(begin(tmp_path, resume="never"), 1)
    assert steps_in(tmp_path) == [1]
    assert len(list(tmp_path.glob(".*.set-aside"))) == 2


def test_no_usable_checkpoint_is_an_error(tmp_path: Path) -> None:
    save_steps(begin(tmp_path), 1, 2)
    for step in (1, 2):
        (tmp_path / f"step-{step:08d}" / "shard-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000002.*step-00000001"):
        begin(tmp_path)
    assert steps_in(tmp_path) == [1, 2]


class FillingDisk:
    """A disk with room for so many bytes more: what still fits is written, then there is no space left."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write, self._lock = os.write, threading.Lock()

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        with self._lock:
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = self._write(descriptor, memoryview(data)[: self.room])
            self.room -= written
            return written


def test_a_disk_that_is_full_at_any_byte_does_not_stop_training(tmp_path: Path, monkeypatch) -> None:
    """Of everything that a save writes: shard, part, manifest and marker."""
    checkpointer, rows = begin(tmp_path), 2_000
    # The manifest has the time and the step, and all saves are to be equally long.
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.125)

    def save(step: int, room: int) -> tuple[SaveOutcome | None, int]:
        """With so much room on the disk; the outcome, and what is left of it."""
        disk = FillingDisk(room)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", disk.write)
            checkpointer.save(step, pieces_of(step, rows), {})
            return checkpointer.wait(), disk.room

    _, left = save(100, 1 << 30)
    needed = (1 << 30) - left
    offsets = [0, needed - 1, *random.Random(1).sample(range(1, needed - 1), 48)]
    for step, room in enumerate(offsets, start=101):
        outcome, _ = save(step, room)
        assert outcome is not None and outcome.state == "failed" and "No space left" in outcome.reason, room
        assert {path.name for path in tmp_path.iterdir()} == {"epochs", "step-00000100"}
    outcome, left = save(200, needed)
    assert outcome is not None and outcome.state == "committed" and left == 0


def test_a_file_that_may_not_grow_fails_the_save(tmp_path: Path) -> None:
    """The limit on file sizes, by the kernel itself."""
    checkpointer = begin(tmp_path)
    save_steps(checkpointer, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpointer.save(2, pieces_of(2, 20_000), {})
        outcome = checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome is not None and outcome.state == "failed" and "too large" in outcome.reason
    assert {path.name for path in tmp_path.iterdir()} == {"epochs", "step-00000001"}
    save_steps(checkpointer, 3)


def test_a_failed_save_stops_training_where_asked(tmp_path: Path, monkeypatch) -> None:
    checkpointer = begin(tmp_path, on_error="stop")

    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(writer, "write_new", full)
        checkpointer.save(1, pieces_of(1), {})
        checkpointer.wait()
    with pytest.raises(SaveFailed, match="No space left"):
        checkpointer.save(2, pieces_of(2), {})
    assert steps_in(tmp_path) == []


def test_progress_must_be_json(tmp_path: Path) -> None:
    checkpointer = begin(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        checkpointer.save(1, pieces_of(1), {"loss": float("nan")})
