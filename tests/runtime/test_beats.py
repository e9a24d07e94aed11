"""Beats: what a reader sees while, before and after a rank writes, and what writing costs."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmscale.runtime import beats
from llmscale.runtime.activity import Activity, process_state
from llmscale.runtime.beats import PHASES, BeatReader, BeatWriter, make_beats_folder
from llmscale.runtime.hooks import RunStart, StepRecord, ValidationRecord

DIFFERENT_BEATS = 2_000


@pytest.fixture
def folder() -> Iterator[Path]:
    made = make_beats_folder()
    yield made
    shutil.rmtree(made)


def step(number: int) -> StepRecord:
    return StepRecord(number, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, None)


def test_a_rank_tells_where_it_is(folder: Path) -> None:
    reader = BeatReader(folder, 3)
    first = reader.read()
    assert (first.phase, first.step, first.count) == ("starting", 0, 0)
    writer = BeatWriter(folder, 3)
    seen = []
    for tell in (
        lambda: writer.on_start(RunStart(10, 20, 0, 0, 1, 0)),
        lambda: writer.on_step(step(11)),
        lambda: writer.on_phase("validating"),
        lambda: writer.on_validation(ValidationRecord(11, 0.0, 1.0, 1.0)),
        lambda: writer.on_phase("saving"),
        lambda: writer.on_waiting(True),
        lambda: writer.on_waiting(False),
        lambda: writer.on_end(11, False),
    ):
        tell()
        beat = reader.read()
        assert 0 <= beat.age_seconds < 1
        seen.append((beat.phase, beat.step, beat.count))
    assert seen == [
        ("training", 10, 1),
        ("training", 11, 2),
        ("validating", 11, 3),
        ("training", 11, 4),
        ("saving", 11, 5),
        ("waiting", 11, 6),
        ("saving", 11, 7),
        ("leaving", 11, 8),
    ]


def test_a_new_start_is_not_mistaken_for_the_one_before(folder: Path) -> None:
    BeatReader(folder, 0)
    old = BeatWriter(folder, 0)
    old.on_step(step(5))
    reader = BeatReader(folder, 0)
    old.on_step(step(6))
    assert (reader.read().step, reader.read().count) == (0, 0)


def test_a_beat_that_is_half_written_does_not_count(folder: Path) -> None:
    reader = BeatReader(folder, 0)
    writer = BeatWriter(folder, 0)
    writer.on_step(step(1))
    writer.on_step(step(2))
    path = folder / "rank-0.beat"
    data = bytearray(path.read_bytes())
    data[17] ^= 1  # a byte of the step, in the slot of the second beat
    path.write_bytes(data)
    assert (reader.read().step, reader.read().count) == (1, 1)


def write_without_end(folder: str, started: Any) -> None:
    writer = BeatWriter(Path(folder), 0)
    started.set()
    for number in range(1, 10**9):
        writer._step = number
        writer.on_phase(PHASES[number % len(PHASES)])


def test_readers_never_see_two_beats_mixed(folder: Path) -> None:
    """The writer's phase and count follow from its step; it never pauses."""
    context = multiprocessing.get_context("forkserver")
    reader, started = BeatReader(folder, 0), context.Event()
    writer = context.Process(target=write_without_end, args=(str(folder), started), daemon=True)
    writer.start()
    try:
        assert started.wait(60)
        last, different, deadline = 0, 0, time.monotonic() + 60
        while different < DIFFERENT_BEATS:
            assert time.monotonic() < deadline
            beat = reader.read()
            assert beat.count >= last
            if beat.count:
                assert (beat.step, beat.phase) == (beat.count, PHASES[beat.count % len(PHASES)])
            different += beat.count > last
            last = beat.count
    finally:
        writer.kill()
        writer.join()


def test_a_beat_costs_less_than_twenty_microseconds(folder: Path) -> None:
    BeatReader(folder, 0)
    writer, record, costs = BeatWriter(folder, 0), step(1), []
    for _ in range(1000):
        began = time.perf_counter()
        writer.on_step(record)
        costs.append(time.perf_counter() - began)
    assert statistics.median(costs) < 20e-6


def spin() -> None:
    while True:
        pass


def test_work_and_being_stopped_count_as_busy_and_sleep_does_not() -> None:
    context = multiprocessing.get_context("forkserver")
    worker = context.Process(target=spin, daemon=True)
    sleeper = context.Process(target=time.sleep, args=(600,), daemon=True)
    stopped = context.Process(target=time.sleep, args=(600,), daemon=True)
    processes = [worker, sleeper, stopped]
    for process in processes:
        process.start()
    try:
        os.kill(stopped.pid or 0, signal.SIGSTOP)
        activities = [Activity(process.pid or 0) for process in processes]
        while process_state(sleeper.pid or 0) != "S" or process_state(worker.pid or 0) != "R":
            time.sleep(0.01)
        before = [activity.busy_seconds() for activity in activities]
        began = time.monotonic()
        while time.monotonic() < began + 0.5:
            time.sleep(0.05)
            after = [activity.busy_seconds() for activity in activities]
        shares = [(late - early) / (time.monotonic() - began) for early, late in zip(before, after)]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert shares[0] > 0.7 and shares[1] < 0.1 and shares[2] > 0.7, shares
    assert [process_state(process.pid or 0) for process in processes] == ["X"] * 3


def test_folders_of_killed_agents_are_removed_and_others_stay(tmp_path: Path) -> None:
    abandoned, held = tmp_path / "llmscale-beats-abandoned", tmp_path / "llmscale-beats-held"
    abandoned.mkdir()
    (abandoned / "rank-0.beat").touch()
    held.mkdir()
    descriptor = os.open(held, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    beats.remove_abandoned(tmp_path)
    assert abandoned.exists(), "it may just be begun"
    beats.remove_abandoned(tmp_path, older_than=0.0)
    assert not abandoned.exists() and held.exists()
    os.close(descriptor)


def test_the_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(beats.VARIABLE, raising=False)
    assert beats.beats_folder() is None
    monkeypatch.setenv(beats.VARIABLE, "/somewhere")
    assert beats.beats_folder() == Path("/somewhere")
