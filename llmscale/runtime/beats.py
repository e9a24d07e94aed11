"""The beats of a rank: what it does and how far it is, in shared memory, for the agent of its node.

A rank writes and the agent reads at any time, without locks and without a word from the rank, which may be
hanging. Beats go to two slots by turns, each with a checksum: while one is being written the other
one is whole, even if the writer is stopped for ever in between.
"""

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import tempfile
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import get_args

from llmscale.control.watchdog import Beat, Phase
from llmscale.runtime.activity import Activity
from llmscale.runtime.hooks import Hook, RunStart, StepRecord, ValidationRecord
from llmscale.runtime.stacks import stacks_path

VARIABLE = "LLMSCALE_BEATS"
"""Names the folder of the node in which every rank has its file."""

PHASES: tuple[Phase, ...] = get_args(Phase)

_FIELDS = struct.Struct("<qqqq")
"""Count, phase, step, nanoseconds of CLOCK_MONOTONIC, which is one for the whole machine."""
_CHECKSUM = struct.Struct("<I")
_SLOT = 64
_PREFIX = "llmscale-beats-"

_held: list[int] = []
"""Descriptors of folders that this process has locked, for as long as it lives."""


def make_beats_folder() -> Path:
    """A folder for the beats of this node's ranks, in memory where the machine has such a place.

    It counts as in use while this process lives; what others that were killed have left is removed.
    """
    shared_memory = Path("/dev/shm")
    place = shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())
    remove_abandoned(place)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _held.append(descriptor)
    return folder


def remove_abandoned(place: Path, older_than: float = 60.0) -> None:
    """Remove folders of beats that no process holds, and that are older than so many seconds: one may just
    be begun."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - folder.stat().st_mtime > older_than:
                    shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def beats_folder() -> Path | None:
    """Where the agent that started this rank looks for beats; None where nobody does."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


class BeatWriter(Hook):
    """The rank's side; hears of phases and steps from the training loop."""

    def __init__(self, folder: Path, rank: int) -> None:
        with _path(folder, rank).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 2 * _SLOT)
        self._phase: Phase = "starting"
        self._step = 0
        self._count = 0
        self._lock = threading.Lock()
        """More than one thread may wait for something."""

    def on_start(self, start: RunStart) -> None:
        self._step = start.step
        self.on_phase("training")

    def on_step(self, record: StepRecord) -> None:
        self._step = record.step
        self.on_phase("training")

    def on_phase(self, phase: Phase) -> None:
        self._phase = phase
        self._beat(phase)

    def on_waiting(self, waits: bool) -> None:
        self._beat("waiting" if waits else self._phase)

    def on_validation(self, record: ValidationRecord) -> None:
        self.on_phase("training")

    def on_end(self, step: int, preempted: bool) -> None:
        self.on_phase("leaving")

    def _beat(self, phase: Phase) -> None:
        with self._lock:
            self._count += 1
            data = _FIELDS.pack(self._count, PHASES.index(phase), self._step, time.monotonic_ns())
            slot = data + _CHECKSUM.pack(zlib.crc32(data))
            start = _SLOT * (self._count % 2)
            self._memory[start : start + len(slot)] = slot


class BeatReader:
    """The agent's side: makes the file before the rank starts, and reads it at any time."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = _path(folder, rank)
        # New files every time: a rank of an earlier start, should one linger, writes to the old ones.
        for old in (path, stacks_path(folder, rank)):
            old.unlink(missing_ok=True)
        with path.open("x+b") as file:
            file.truncate(2 * _SLOT)
            self._memory = mmap.mmap(file.fileno(), 2 * _SLOT)
        self._activity: Activity | None = None
        self._last = (0, 0, 0, time.monotonic_ns())

    def read(self, pid: int | None = None) -> Beat:
        """The newest beat; with the rank's `pid` also how busy it is. "starting" before the first."""
        slots = [_slot(self._memory[start : start + _SLOT]) for start in (0, _SLOT)]
        # Both unreadable: two beats came during the look. The one before will do.
        self._last = max([self._last, *(slot for slot in slots if slot)], key=lambda slot: slot[0])
        count, phase, step, then = self._last
        beat = Beat(PHASES[phase], step, count, (time.monotonic_ns() - then) / 1e9)
        if pid is None:
            return beat
        if self._activity is None or self._activity.pid != pid:
            self._activity = Activity(pid)
        return replace(beat, busy_seconds=self._activity.busy_seconds())

    def close(self) -> None:
        self._memory.close()


def _slot(data: bytes) -> tuple[int, int, int, int] | None:
    fields = data[: _FIELDS.size]
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    count, phase, step, then = _FIELDS.unpack(fields)
    whole = count > 0 and checksum == zlib.crc32(fields)
    return (count, phase, step, then) if whole else None


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.beat"
