"""Blows to a run of reinforcement learning: which process, after which step, in which part of it."""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from tests.distributed.trainings import Run

DRIVER = "driver"
PARTS = ("rollout", "rewards", "knowing", "learning", "saving")
LOOK_SECONDS = 0.002
PATIENCE_SECONDS = 300.0


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def kill_child(name: str) -> Callable[[int], None]:
    """Not the process itself, but the one of that name which it has started."""
    return lambda pid: next(one for one in psutil.Process(pid).children() if one.name() == name).kill()


@dataclass(frozen=True)
class Blow:
    pool: str
    """Or DRIVER."""
    rank: int
    after_step: int
    """It comes once this step is done, ..."""
    part: str
    """... in this part of the next one (or in the first that is seen after it), ..."""
    delay: float = 0.0
    """... so many seconds after its begin."""
    how: Callable[[int], None] = kill


def plan(seed: int, pools: Mapping[str, int], steps: int) -> Blow:
    """The role is the seed's turn; the rest is drawn.

    Args:
        pools: name -> processes.
        steps: of the run; the blow comes before the last one begins, so that what was lost is missed.
    """
    chance = random.Random(seed)
    victims = [DRIVER, *pools]
    pool = victims[seed % len(victims)]
    rank = 0 if pool == DRIVER else chance.randrange(pools[pool])
    return Blow(pool, rank, chance.randrange(steps - 1), chance.choice(PARTS), chance.uniform(0, 0.1))


def pid_of(run: Run, pool: str, rank: int) -> int | None:
    """Of the process that a pool has now for a rank, or of the driver; None before it is there."""
    name = "rank-0" if pool == DRIVER else f"worker-{pool}-{rank}"
    log = run.folder / "logs" / f"{name}.log"
    found = re.findall(r"--- rank \d+ pid (\d+) started", log.read_text()) if log.exists() else []
    return int(found[-1]) if found else None


@dataclass
class Striker:
    """Deals blows, one after another, to a run that goes on in another thread or process."""

    run: Run
    blows: Sequence[Blow]
    pids: list[int] = field(default_factory=list)
    """Of the processes that were struck."""
    over: threading.Event = field(default_factory=threading.Event)

    def carry_out(self) -> None:
        for blow in self.blows:
            if not self._until(lambda blow=blow: self._is_due(blow)):
                return
            time.sleep(blow.delay)
            pid = pid_of(self.run, blow.pool, blow.rank)
            assert pid is not None
            before = self._restarts()
            blow.how(pid)
            self.pids.append(pid)
            # What was lost is missed before the next one is struck.
            self._until(lambda before=before: self._restarts() > before)

    def _restarts(self) -> int:
        return len(self.run.events("restarted")) + len(self.run.events("pool_restarted"))

    def _is_due(self, blow: Blow) -> bool:
        try:
            part = json.loads((self.run.folder / "part.json").read_text())
        except (OSError, ValueError):
            return False
        next_step = blow.after_step + 1
        if part["name"] == "saving":
            return blow.part == "saving" and part["step"] >= next_step
        return part["step"] >= next_step and (part["name"] == blow.part or part["step"] > next_step)

    def _until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self.over.is_set() or time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return True


@contextmanager
def striking(run: Run, *blows: Blow) -> Iterator[Striker]:
    """Deal `blows` beside what happens inside; all of them must have come to pass afterwards."""
    striker = Striker(run, blows)
    thread = threading.Thread(target=striker.carry_out)
    thread.start()
    try:
        yield striker
    finally:
        striker.over.set()
        thread.join()
    assert len(striker.pids) == len(blows), f"of {blows} only {len(striker.pids)} came to pass"
