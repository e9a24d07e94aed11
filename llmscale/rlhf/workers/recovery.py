"""What is done again when a pool is lost whose models are as they were in files: everything but learning."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from llmscale.config.rlhf_pools import LEARNING
from llmscale.rlhf.workers.lost import WorkerLost
from llmscale.rlhf.workers.pool import Pool
from llmscale.runtime.events import EventLog
from llmscale.runtime.hooks import Hook

Result = TypeVar("Result")


class Recovery:
    """
    Args:
        pools: of the run, by name.
        events: hears of every loss and of every restart.
        hook: hears that something takes as long as a start.
        most: restarts in a row without a step in between.
        forget_writers: called where those that write answers have begun again, without weights.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        events: EventLog,
        hook: Hook,
        most: int,
        forget_writers: Callable[[], None],
    ) -> None:
        self.pools = pools
        self.events = events
        self.hook = hook
        self.most = most
        self.forget_writers = forget_writers
        self.left = most

    def step_done(self) -> None:
        """Count anew."""
        self.left = self.most

    def repeated(self, step: int, work: Callable[[], Result]) -> Result:
        """What `work` returns, which is done again after a pool was lost and has been restarted.

        Args:
            step: steps done.
            work: changes no model and no state.

        Raises:
            WorkerLost: of a pool with a model that learns, or once too often.
        """
        while True:
            try:
                return work()
            except WorkerLost as lost:
                self._mend(step, lost)

    def _mend(self, step: int, lost: WorkerLost) -> None:
        # The other models hold nothing but what is in files, or is given to them before each use.
        if not self.left or any(role in LEARNING for role in lost.roles):
            raise lost
        tell(self.events, step, lost)
        self.left -= 1
        began = time.perf_counter()
        # Processes start and models are read, which is no step that hangs.
        self.hook.on_phase("starting")
        try:
            self.pools[lost.pool].restart()
        except WorkerLost as again:
            self._mend(step, again)
            return
        if "rollout" in lost.roles:
            self.forget_writers()
        self.hook.on_phase("training")
        seconds = time.perf_counter() - began
        self.events.write("pool_restarted", step, pool=lost.pool, roles=list(lost.roles), seconds=seconds)


def tell(events: EventLog, step: int | None, lost: WorkerLost) -> None:
    """Write what was lost, and print it.

    Args:
        step: steps done; None: before the first, or who tells does not know.
    """
    print(lost, flush=True)
    events.write(
        "worker_lost",
        step,
        pool=lost.pool,
        roles=list(lost.roles),
        rank=lost.rank,
        host=lost.host,
        cause=lost.cause,
    )
