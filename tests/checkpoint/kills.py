"""SIGKILL at random moments of saves, and whether the run goes on from what was committed.

`python -m tests.checkpoint.kills [of one writer] [of two] [of whole worlds] [seed]` prints the docs' table.

Moments are drawn in the writer's own time: after so many of its commits, and a share of the time that
one takes. So a busy machine changes how long it takes and nothing else.
"""

import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.store import Store, verify
from llmscale.config.schema import CheckpointSection
from llmscale.model.regions import Piece
from tests.distributed.kills import Killer
from tests.distributed.trainings import DP2, TP2_PP2, Place, Run, assert_same_run

OPTIONS = CheckpointSection(keep_last=2)
ROWS = 3_000
PATIENCE_SECONDS = 120
FIRST_GUESS_SECONDS = 0.02
"""How long a save takes, before one has been seen."""

fork = multiprocessing.get_context("fork")


@dataclass
class Tally:
    """What came of the kills."""

    kills: int = 0
    torn: int = 0
    """Kills that left an unfinished save behind."""
    committed: int = 0
    """Saves that the killer was told are committed."""
    faults: list[str] = field(default_factory=list)
    """A committed step that was lost, a mixed or damaged one, a start that did not go on."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.kills + other.kills,
            self.torn + other.torn,
            self.committed + other.committed,
            self.faults + other.faults,
        )


def pieces_of(step: int, ranks: int = 1, rank: int = 0) -> list[Piece]:
    """One rank's rows of two matrices whose every element is the step."""
    share = ROWS // ranks
    data = torch.full((share, 16), float(step))
    return [Piece(name, (ROWS, 16), (rank * share, 0), data.clone()) for name in ("a", "b")]


def save_for_ever(folder: Path, rank: int, ranks: int, meeting: str, news: Connection) -> None:
    """A rank that goes on from where the run was, saves step after step, and tells what is committed."""
    torch.set_num_threads(1)
    if ranks > 1:
        timeout = timedelta(seconds=PATIENCE_SECONDS)
        dist.init_process_group("gloo", f"file://{meeting}", timeout, ranks, rank)
    checkpointer = Checkpointer(folder, rank, ranks, OPTIONS, dist.group.WORLD if ranks > 1 else None)
    pieces = pieces_of(-1, ranks, rank)
    loaded = checkpointer.load_newest(pieces)
    step = loaded.step if loaded else 0
    sound = loaded is None or all((piece.data == step).all() for piece in pieces) and not loaded.passed_over
    news.send(("resumed" if sound else "mixed", step))
    while True:
        step += 1
        checkpointer.save(step, pieces_of(step, ranks, rank), {"step": step})
        outcome = checkpointer.wait()
        assert outcome is not None
        news.send((outcome.state, step))


@dataclass
class Writers:
    """The ranks of one start, and what they have told."""

    processes: list[Any]
    news: list[Connection]
    save_seconds: float = FIRST_GUESS_SECONDS

    @classmethod
    def start(cls, folder: Path, ranks: int) -> "Writers":
        meeting = str(folder.parent / f"meeting-{time.monotonic_ns()}")
        processes, news = [], []
        for rank in range(ranks):
            reading, writing = fork.Pipe(duplex=False)
            arguments = (folder, rank, ranks, meeting, writing)
            processes.append(fork.Process(target=save_for_ever, args=arguments, daemon=True))
            processes[-1].start()
            writing.close()
            news.append(reading)
        return cls(processes, news)

    def hear(self, rank: int = 0) -> tuple[str, int]:
        """The next word of a rank."""
        if not self.news[rank].poll(PATIENCE_SECONDS):
            return "silent", 0
        try:
            return self.news[rank].recv()
        except EOFError:
            return "dead", 0

    def hear_the_rest(self) -> Iterator[tuple[str, int]]:
        """What rank 0 could still tell before it was killed."""
        while self.news[0].poll():
            try:
                yield self.news[0].recv()
            except EOFError:
                return

    def kill(self, chance: random.Random) -> None:
        """All of them, one after the other."""
        for process in chance.sample(self.processes, len(self.processes)):
            process.kill()
            time.sleep(chance.uniform(0, self.save_seconds) if len(self.processes) > 1 else 0)
        for process in self.processes:
            process.join()

    def close(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        for connection in self.news:
            connection.close()


def kill_writers(folder: Path, ranks: int, kills: int, seed: int) -> Tally:
    """Start writers of one run, kill them in a save, and start them again, `kills` times."""
    chance, tally, newest = random.Random(seed), Tally(), 0
    for kill in range(kills):
        writers = Writers.start(folder, ranks)
        for rank in range(ranks):
            word, step = writers.hear(rank)
            if word != "resumed" or step < newest:
                tally.faults.append(f"kill {kill}: step {newest} was committed; rank {rank}: {word} {step}")
            newest = max(newest, step)
        for _ in range(chance.randrange(3)):
            began = time.monotonic()
            word, step = writers.hear()
            writers.save_seconds = time.monotonic() - began
            newest = _count(word, step, newest, tally)
        time.sleep(chance.uniform(0, 1.2 * writers.save_seconds))
        writers.kill(chance)
        tally.kills += 1
        for word, step in writers.hear_the_rest():
            newest = _count(word, step, newest, tally)
        writers.close()
        tally.torn += is_torn(folder)
    return tally


def _count(word: str, step: int, newest: int, tally: Tally) -> int:
    if word != "committed" or step <= newest:
        tally.faults.append(f"after step {newest}: {word} {step}")
        return newest
    tally.committed += 1
    return step


def is_torn(folder: Path) -> bool:
    """Whether an unfinished save or removal lies there."""
    unfinished = [path for kind in ("partial", "deleting") for path in folder.glob(f".*.{kind}")]
    return bool(unfinished) or any(found.state == "uncommitted" for found in Store(folder).checkpoints())


WORLDS: dict[str, tuple[str, ...]] = {
    "data 2, ZeRO-1": DP2,
    "data 2, ZeRO-3, bf16": (*DP2, "zero.stage=3", "train.precision=bf16"),
    "tensor 2 x pipeline 2, bf16, dropout": (*TP2_PP2, "train.precision=bf16", "model.dropout=0.1"),
}
STEPS_FOR_A_KILL = 3
LONGEST_DELAY_SECONDS = 0.02
"""How long after the beginning of a save a kill comes at the latest."""


def ranks_of(overrides: Sequence[str]) -> int:
    [ranks] = [option.split("=")[1] for option in overrides if option.startswith("cluster.processes")]
    return int(ranks)


def kill_world(place: Place, name: str, overrides: Sequence[str], kills: int, seed: int) -> Tally:
    """Train with ranks killed while they save; at the end all must be as if nothing had happened."""
    options = (
        *overrides,
        f"train.steps={STEPS_FOR_A_KILL * kills + 6}",
        "checkpoint.every=1",
        f"cluster.max_restarts={kills + 1}",
    )
    oracle, run = place.uninterrupted(f"oracle-{name}", *options), place.run(f"killed-{name}")
    tally = Tally()
    killer = SaveKiller(run, ranks_of(overrides), random.Random(seed), tally)
    thread = threading.Thread(target=killer.carry_out, args=(kills,))
    thread.start()
    try:
        code = place.train(f"killed-{name}", *options)
    finally:
        killer.over.set()
        thread.join()
    if code != 0:
        tally.faults.append(f"{name}: exit code {code}")
        return tally
    assert_same_run(run, oracle)
    found = Store(run.folder / "checkpoints").checkpoints()
    tally.faults += [f"{name}: {one.path.name} is not sound" for one in found if verify(one)]
    return tally


@dataclass
class SaveKiller:
    """Kills one rank of a training run after the other, each at a moment at which a save is under way."""

    run: Run
    ranks: int
    chance: random.Random
    tally: Tally
    over: threading.Event = field(default_factory=threading.Event)
    """The run has ended."""

    def carry_out(self, kills: int) -> None:
        while self.tally.kills < kills and not self.over.is_set():
            later = max(self.run.last_step() + self.chance.randrange(1, STEPS_FOR_A_KILL), 2)
            if self._until(lambda later=later: self.run.last_step() >= later):
                self._kill_in_a_save()

    def _kill_in_a_save(self) -> None:
        pid = Killer(self.run, []).rank_pid(self.chance.randrange(self.ranks))
        saving = False
        while not saving and self._until(self.run.saving):
            time.sleep(self.chance.uniform(0, LONGEST_DELAY_SECONDS))
            saving = self.run.saving()
        if not saving:
            return
        committed, resumed = max(self.run.committed_steps(), default=0), len(self.run.events("resumed"))
        os.kill(pid, signal.SIGKILL)
        self.tally.kills += 1
        self.tally.torn += is_torn(self.run.folder / "checkpoints")
        if committed and self._until(lambda: len(self.run.events("resumed")) > resumed):
            step = self.run.events("resumed")[resumed].step
            if step is None or step < committed:
                self.tally.faults.append(f"step {committed} was committed; the run went on from {step}")

    def _until(self, condition: Callable[[], bool]) -> bool:
        while not condition():
            if self.over.is_set():
                return False
            time.sleep(0.0005)
        return True


def main(one: int, two: int, worlds: int, seed: int) -> None:
    logging.disable(logging.WARNING)
    total = Tally()
    print("| writers | kills | unfinished saves left | lost, mixed or not resumed |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, ranks, kills in (("one rank", 1, one), ("two ranks", 2, two)):
            folder = Path(scratch) / name / "checkpoints"
            folder.parent.mkdir()
            total += _print(f"{name}, storage only", kill_writers(folder, ranks, kills, seed))
        place = Place.make(Path(scratch))
        for number, (name, overrides) in enumerate(WORLDS.items()):
            kills = worlds // len(WORLDS) + (number < worlds % len(WORLDS))
            tally = Tally()
            for part in range(0, kills, 20):
                label = f"world-{number}-{part}"
                tally += kill_world(place, label, overrides, min(20, kills - part), seed + part)
            total += _print(f"training: {name}", tally)
    _print("together", total)


def _print(name: str, tally: Tally) -> Tally:
    print(f"| {name} | {tally.kills:,} | {tally.torn:,} | {len(tally.faults)} |", flush=True)
    for fault in tally.faults[:10]:
        print("   ", fault)
    return tally


if __name__ == "__main__":
    main(*(int(given) for given in (sys.argv[1:] + ["1500", "380", "120", "1"][len(sys.argv) - 1 :])))
