"""One agent a node: starts the ranks, watches them, starts them again, and says how it ended.

torch's elastic agent brings the meeting of the nodes and the loop around it. Torch's own local agent
turns every exit code into 1, waits half a minute for ranks that it asks to go and leaves orphans when a
scheduler signals it; so the four methods that deal with processes are ours.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)

from llmscale.parallel.environment import NodeEnvironment
from llmscale.runtime.events import EventLog
from llmscale.runtime.failure import Failure, find_failure
from llmscale.runtime.metrics import last_metrics
from llmscale.runtime.ranks import Entry, RankProcess, join_ranks, kill_ranks, start_rank
from llmscale.runtime.rendezvous import LOOPBACK, LoopbackRendezvous, between_nodes, loopback_interface
from llmscale.runtime.stop_signal import EXIT_SAVED, SIGNALS

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_NO_PROGRESS = 3

POLL_SECONDS = 0.05
LEAVE_SECONDS = 30.0
"""How long a rank that is done may take to close its connections."""


@dataclass(frozen=True)
class Job:
    """What an agent is to run."""

    run_folder: Path
    entry: Entry
    """Called in every rank with `arguments`; returns 0 (done), 75 (saved) or a final verdict (1, 2, 3).
    Must be importable by name."""
    arguments: tuple[object, ...]
    processes: int
    """Ranks on this node."""
    committed_step: Callable[[], int | None]
    """Step of the newest committed checkpoint: what counts as progress."""
    nodes: int = 1
    max_restarts: int = 3
    """Restarts in a row without a newer committed checkpoint."""


class Watcher:
    """Hears from the agent while it works; the terminal's progress display is one."""

    def poll(self) -> None:
        """Called several times a second."""

    def say(self, text: str) -> None:
        """Something that a person should read."""


class _Interrupted(Exception):
    """A second Ctrl-C."""


class Agent(SimpleElasticAgent):
    """Runs a `Job` on this node; `exit_code = Agent(job, watcher).run_job()`."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        if job.nodes == 1:
            handler = LoopbackRendezvous()
        else:
            handler = between_nodes(NodeEnvironment.from_variables(), job.nodes)
        super().__init__(
            WorkerSpec(
                role="rank",
                local_world_size=job.processes,
                rdzv_handler=handler,
                entrypoint=job.entry,
                max_restarts=job.max_restarts,
                monitor_interval=POLL_SECONDS,
            )
        )
        self.job = job
        self.watcher = watcher
        self.events = EventLog(job.run_folder)
        self.ranks: list[RankProcess] = []
        self.starts = 0
        self.failure: Failure | None = None
        self.committed_before: int | None = None
        self.stop_signal: signal.Signals | None = None
        self.asked_to_stop: set[int] = set()

    def run_job(self) -> int:
        """Run to the end; returns the exit code of section "Exit codes". Main thread only."""
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (*SIGNALS, signal.SIGINT)
            if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            step = self.committed_before = self.job.committed_step()
            self.events.write("started", step or 0, pid=os.getpid(), processes=self.job.processes)
            result: RunResult = self.run()  # pyright: ignore[reportAssignmentType] -- torch's @prof hides the type
            return self._conclude(result)
        except _Interrupted:
            self.events.write("failed", self._last_step(), cause="interrupted twice")
            self.watcher.say("interrupted; what was not saved is lost")
            return EXIT_FAILED
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _conclude(self, result: RunResult) -> int:
        if self.failure is None:
            saved = EXIT_SAVED in result.return_values.values()
            self.events.write("preempted" if saved else "finished", self._last_step())
            return EXIT_SAVED if saved else EXIT_DONE
        if self.failure.exit_code is not None:
            return self.failure.exit_code
        if self.stop_signal is not None:
            # The newest checkpoint is what a requeued run goes on from.
            self.events.write("preempted", self.job.committed_step(), cause="failed while stopping")
            return EXIT_SAVED
        if self.job.max_restarts == 0:
            return EXIT_FAILED
        self.watcher.say(f"given up: {self.job.max_restarts} restarts brought no new checkpoint")
        return EXIT_NO_PROGRESS

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self.starts:
            self.events.write("restarted", self.job.committed_step(), restart=self.starts)
            self.watcher.say(f"restarting from step {self.job.committed_step() or 0}")
        self.failure = None
        self.asked_to_stop = set()
        self.ranks = [
            start_rank(
                worker.global_rank,
                self.job.entry,
                self.job.arguments,
                self._variables(worker_group, worker.local_rank, worker.global_rank, worker.world_size),
                self.job.run_folder / "logs" / f"rank-{worker.global_rank}.log",
            )
            for worker in worker_group.workers
        ]
        self.starts += 1
        return {local_rank: rank.pid for local_rank, rank in enumerate(self.ranks)}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.watcher.poll()
        self._pass_on_stop()
        failure = find_failure(self.ranks, EXIT_SAVED)
        if failure is not None:
            kill_ranks(self.ranks)
            self._on_failure(failure)
            return RunResult(WorkerState.FAILED)
        if all(rank.ending is not None for rank in self.ranks):
            join_ranks(self.ranks, LEAVE_SECONDS)
            self.watcher.poll()
            codes = {rank.rank: rank.ending.exit_code for rank in self.ranks if rank.ending}
            return RunResult(WorkerState.SUCCEEDED, return_values=codes)
        return RunResult(WorkerState.HEALTHY)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 0) -> None:
        """Called when the ranks' work is of no more use, so they get no time to save."""
        kill_ranks(self.ranks)
        self.ranks = []

    def _on_failure(self, failure: Failure) -> None:
        self.failure = failure
        self.events.write(
            "failed",
            self._last_step(),
            rank=failure.rank,
            host=failure.host,
            pid=failure.pid,
            cause=failure.cause,
            log_lines=failure.log_lines,
        )
        self.watcher.say(failure.describe())
        committed = self.job.committed_step()
        if committed is not None and committed > (self.committed_before or 0):
            self._remaining_restarts = self.job.max_restarts
        self.committed_before = committed
        if failure.exit_code is not None or self.stop_signal is not None:
            self._remaining_restarts = 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_signal == signal.SIGINT and number == signal.SIGINT:
            raise _Interrupted
        self.stop_signal = signal.Signals(number)

    def _pass_on_stop(self) -> None:
        """Ask every rank once to save and leave."""
        if self.stop_signal is None:
            return
        if not self.asked_to_stop:
            again = "; Ctrl-C again ends it at once" if self.stop_signal == signal.SIGINT else ""
            self.watcher.say(f"{self.stop_signal.name}: saving after this step{again}")
        for rank in self.ranks:
            if rank.rank not in self.asked_to_stop:
                rank.send(signal.SIGTERM)
                self.asked_to_stop.add(rank.rank)

    def _variables(self, group: WorkerGroup, local_rank: int, rank: int, world_size: int) -> dict[str, str]:
        variables = {
            "RANK": rank,
            "LOCAL_RANK": local_rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": self.job.processes,
            "GROUP_RANK": group.group_rank,
            "GROUP_WORLD_SIZE": group.group_world_size,
            "MASTER_ADDR": group.master_addr,
            "MASTER_PORT": group.master_port,
            "TORCHELASTIC_RESTART_COUNT": self.starts,
            "TORCHELASTIC_RUN_ID": group.spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": group.spec.rdzv_handler.use_agent_store,
        }
        if group.master_addr == LOOPBACK:
            interface = loopback_interface()
            variables |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        return {name: str(value) for name, value in variables.items()}

    def _last_step(self) -> int:
        metrics = last_metrics(self.job.run_folder)
        return int(metrics["step"]) if metrics else 0
