"""Seeded kills of a run: which rank dies, after which step, and at what moment."""

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tests.distributed.trainings import Run

Moment = Literal["step", "save"]
LOOK_SECONDS = 0.001
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Kill:
    rank: int
    after_step: int
    """It comes once this step is done, ..."""
    moment: Moment
    """... at any time in the next one, or while the next checkpoint is written."""
    delay: float
    """Seconds to wait after `after_step`, for the moment `step`."""


def plan(seed: int, kills: int, ranks: int, steps: int) -> list[Kill]:
    """Kills in order of their steps; the last step is left alone, so that each of them hits a live run."""
    chance = random.Random(seed)
    after = sorted(chance.randrange(1, steps - 3) for _ in range(kills))
    return [
        Kill(chance.randrange(ranks), step, chance.choice(("step", "step", "save")), chance.uniform(0, 0.2))
        for step in after
    ]


@dataclass
class Killer:
    """Carries out a plan on a run that goes on in another thread or process."""

    run: Run
    kills: Sequence[Kill]
    recoveries: list[float] = field(default_factory=list)
    """Seconds from each kill to the end of the first step after it."""
    over: threading.Event = field(default_factory=threading.Event)

    def carry_out(self) -> None:
        for kill in self.kills:
            if not self._until(lambda kill=kill: self.run.last_step() >= kill.after_step):
                return
            if kill.moment == "save" and not self._until(self.run.saving):
                return
            if kill.moment == "step":
                time.sleep(kill.delay)
            before = self._metrics_file()
            began = time.perf_counter()
            os.kill(self.rank_pid(kill.rank), signal.SIGKILL)
            if self._until(lambda before=before: self._metrics_file()[0] != before[0]):
                size = self._metrics_file()[1]
                if self._until(lambda size=size: self._metrics_file()[1] > size):
                    self.recoveries.append(time.perf_counter() - began)

    def rank_pid(self, rank: int) -> int:
        log = (self.run.folder / "logs" / f"rank-{rank}.log").read_text()
        return int(re.findall(rf"--- rank {rank} pid (\d+) started", log)[-1])

    def _metrics_file(self) -> tuple[int, int]:
        """(identity, size): a start of the ranks puts a new file in place, a step makes it longer."""
        status = (self.run.folder / "metrics.jsonl").stat()
        return status.st_ino, status.st_size

    def _until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self.over.is_set() or time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return True


@contextmanager
def killing(run: Run, kills: Sequence[Kill]) -> Iterator[Killer]:
    """Carry out `kills` beside what happens inside; afterwards all of them must have come to pass."""
    killer = Killer(run, kills)
    thread = threading.Thread(target=killer.carry_out)
    thread.start()
    try:
        yield killer
    finally:
        killer.over.set()
        thread.join()
    assert len(killer.recoveries) == len(kills), (
        f"{len(killer.recoveries)} of {len(kills)} kills came to pass"
    )


@contextmanager
def killing_by_the_clock(run: Run, seed: int, kills: int, ranks: int) -> Iterator[None]:
    """Kill a random rank every now and then, wherever the run may be."""
    chance, over = random.Random(seed), threading.Event()

    def carry_out() -> None:
        killer = Killer(run, [])
        while not (run.folder / "logs" / f"rank-{ranks - 1}.log").exists() and not over.wait(LOOK_SECONDS):
            pass
        for _ in range(kills):
            if over.wait(chance.uniform(0.1, 1.5)):
                return
            with contextlib.suppress(ProcessLookupError, IndexError):  # between two starts: nobody there
                os.kill(killer.rank_pid(chance.randrange(ranks)), signal.SIGKILL)

    thread = threading.Thread(target=carry_out)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
