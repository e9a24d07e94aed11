"""Seeded kills of a run of reinforcement learning: which process, after which step, in which part of it."""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.distributed.trainings import Run

DRIVER = "driver"
PARTS = ("rollout", "rewards", "knowing", "learning", "saving")
LOOK_SECONDS = 0.002
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class RoleKill:
    pool: str
    """Or DRIVER."""
    rank: int
    after_step: int
    """It comes once this step is done, ..."""
    part: str
    """... in this part of the next one (where it has such a part; else in its first), ..."""
    delay: float
    """... so many seconds after its begin."""


def plan(seed: int, pools: Mapping[str, int], steps: int) -> RoleKill:
    """The role is the seed's turn; the rest is drawn.

    Args:
        pools: name -> processes.
        steps: of the run; the kill comes before the last one begins, so that what was lost is missed.
    """
    chance = random.Random(seed)
    victims = [DRIVER, *pools]
    pool = victims[seed % len(victims)]
    rank = 0 if pool == DRIVER else chance.randrange(pools[pool])
    return RoleKill(pool, rank, chance.randrange(steps - 1), chance.choice(PARTS), chance.uniform(0, 0.1))


def pid_of(run: Run, pool: str, rank: int) -> int | None:
    """Of the process that a pool has now for a rank, or of the driver; None before it is there."""
    name = "rank-0" if pool == DRIVER else f"worker-{pool}-{rank}"
    log = run.folder / "logs" / f"{name}.log"
    found = re.findall(r"--- rank \d+ pid (\d+) started", log.read_text()) if log.exists() else []
    return int(found[-1]) if found else None


@dataclass
class RoleKiller:
    """Carries out a kill on a run that goes on in another thread or process."""

    run: Run
    kill: RoleKill
    strike: Callable[[int], None]
    pid: int | None = None
    """Of the process that was killed."""
    over: threading.Event = field(default_factory=threading.Event)

    def carry_out(self) -> None:
        if self._until(self._is_due):
            time.sleep(self.kill.delay)
            pid = pid_of(self.run, self.kill.pool, self.kill.rank)
            assert pid is not None
            self.strike(pid)
            self.pid = pid

    def _is_due(self) -> bool:
        try:
            part = json.loads((self.run.folder / "part.json").read_text())
        except (OSError, ValueError):
            return False
        next_step = self.kill.after_step + 1
        if part["name"] == "saving":
            return self.kill.part == "saving" and part["step"] >= next_step
        return part["step"] >= next_step and (part["name"] == self.kill.part or part["step"] > next_step)

    def _until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self.over.is_set() or time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return True


@contextmanager
def killing(run: Run, kill: RoleKill, strike: Callable[[int], None] | None = None) -> Iterator[RoleKiller]:
    """Carry out `kill` beside what happens inside; it must have come to pass afterwards.

    Args:
        strike: what is done to the process instead of SIGKILL.
    """
    killer = RoleKiller(run, kill, strike or (lambda pid: os.kill(pid, signal.SIGKILL)))
    thread = threading.Thread(target=killer.carry_out)
    thread.start()
    try:
        yield killer
    finally:
        killer.over.set()
        thread.join()
    assert killer.pid is not None, f"{kill} did not come to pass"
