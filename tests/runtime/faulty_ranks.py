"""Ranks that train in lockstep over gloo, with beats as a real run has them, until a fault hits one of them;
and the part of an agent that watches them."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as distributed

from llmscale.control.messages import Evidence
from llmscale.control.watchdog import Verdict, Watchdog
from llmscale.runtime.beats import VARIABLE, BeatReader, BeatWriter, make_beats_folder
from llmscale.runtime.hooks import RunStart, StepRecord
from llmscale.runtime.ranks import RankProcess, kill_ranks, start_rank
from llmscale.runtime.stacks import collect_evidence

FAULT_STEP = 5
LOOK_SECONDS = 0.05


def train(store: str, fault: str, victim: int, step_seconds: float) -> int:
    """Steps without end; `victim` meets `fault` in step FAULT_STEP."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    beats = BeatWriter(Path(os.environ[VARIABLE]), rank)
    beats.on_start(RunStart(0, 0, 0, 0, world_size, 0))
    gradient, group = torch.ones(1000), distributed.new_group()
    assert isinstance(group, distributed.ProcessGroup)
    step = 0
    while True:
        step += 1
        work(step_seconds)
        hit = fault if step == FAULT_STEP and rank == victim else ""
        if hit == "lock":
            hold_the_lock()
        elif hit == "sleep":
            load_data()
        if hit == "other collective":
            other_collective(gradient, group)
        elif hit != "skip":
            sum_gradients(gradient, group)
        agree()
        beats.on_step(StepRecord(step, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, None))


def work(seconds: float) -> None:
    """Use the processor for that long, whoever else does."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def hold_the_lock() -> None:
    """C code that does not let go of the interpreter's lock; a signal ends one such sleep only."""
    while True:
        ctypes.PyDLL(None).sleep(100)


def load_data() -> None:
    while True:
        time.sleep(100)


def sum_gradients(gradient: torch.Tensor, group: distributed.ProcessGroup) -> None:
    distributed.all_reduce(gradient, group=group)


def other_collective(gradient: torch.Tensor, group: distributed.ProcessGroup) -> None:
    distributed.broadcast(gradient, 0, group=group)


def agree() -> None:
    distributed.all_reduce(torch.zeros(1, dtype=torch.int32))


@dataclass
class WatchedRanks:
    """Ranks, their beats, and what to look at them with."""

    folder: Path
    ranks: list[RankProcess] = field(default_factory=list)
    readers: list[BeatReader] = field(default_factory=list)

    def look(self, watchdog: Watchdog) -> Verdict:
        beats = {rank.rank: reader.read(rank.pid) for rank, reader in zip(self.ranks, self.readers)}
        return watchdog.observe(time.monotonic(), beats)

    def look_until(self, watchdog: Watchdog, seconds: float) -> tuple[Verdict, float]:
        """The first verdict, and how long it took."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            verdict = self.look(watchdog)
            if verdict is not None:
                return verdict, time.monotonic() - began
            time.sleep(LOOK_SECONDS)
        return None, seconds

    def step(self) -> int:
        return min(reader.read().step for reader in self.readers)

    def wait_for_step(self, step: int, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while self.step() < step:
            assert time.monotonic() < deadline, [rank.log_tail() for rank in self.ranks]
            time.sleep(0.01)

    def evidence(self) -> tuple[Evidence, ...]:
        pids = {rank.rank: rank.pid for rank in self.ranks}
        steps = {rank.rank: reader.read().step for rank, reader in zip(self.ranks, self.readers)}
        return collect_evidence(self.folder, pids, steps)

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.ranks[rank].pid, number)


@contextlib.contextmanager
def watched_ranks(
    tmp_path: Path, world_size: int, fault: str = "", victim: int = 0, step_seconds: float = 0.01
) -> Iterator[WatchedRanks]:
    watched = WatchedRanks(make_beats_folder())
    try:
        for rank in range(world_size):
            watched.readers.append(BeatReader(watched.folder, rank))
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, VARIABLE: watched.folder}
            watched.ranks.append(
                start_rank(
                    rank,
                    train,
                    (str(tmp_path / "store"), fault, victim, step_seconds),
                    {name: str(value) for name, value in variables.items()},
                    tmp_path / f"rank-{rank}.log",
                )
            )
        yield watched
    finally:
        kill_ranks(watched.ranks)
        for reader in watched.readers:
            reader.close()
        for path in watched.folder.iterdir():
            path.unlink()
        watched.folder.rmdir()
