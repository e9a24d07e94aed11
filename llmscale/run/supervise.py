"""The attempts of a run that no scheduler looks after: `llmscale cluster supervise`. No torch.

The supervisor waits for the runs that this one depends on, starts the node's agent, passes signals on to it,
and starts it again for as long as `llmscale.control.requeue` says so.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from llmscale.config.load import read_resolved
from llmscale.control.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_SAVED
from llmscale.control.requeue import Rules, Tries, decide, tries_without_progress
from llmscale.run.committed import committed_step
from llmscale.run.endings import CANCELLED_NAME, how_it_ended, last_ending
from llmscale.runtime.events import Event, EventLog, read_events

POLL_SECONDS = 0.1
WAIT_SECONDS = 0.5
"""Between looks at the runs that this one waits for."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


@dataclass
class Supervisor:
    """Looks after the run in `folder`; `Supervisor(folder).run()` returns the run's exit code."""

    folder: Path
    finished: Sequence[Path] = ()
    """Runs that must have finished before this one starts; one that ends otherwise ends this one."""
    ended: Sequence[Path] = ()
    """Runs that must have ended, in whatever way."""
    command: Sequence[str] = (sys.executable, "-m", "llmscale", "cluster", "node")
    """What an attempt is, before the run folder."""
    first_pause: float = FIRST_PAUSE
    """Seconds between two attempts; twice as many after each that brought nothing new."""
    silent: int = 0
    """Attempts in a row that ended before they could write that they had started."""
    asked_to_end: bool = False
    passed_on: list[signal.Signals] = field(default_factory=list[signal.Signals])
    """Signals that came and are still to be given to the agent."""

    def run(self) -> int:
        """Attempt after attempt until the run is over. Main thread only.

        SIGUSR1 and SIGHUP ask this attempt to save, SIGTERM and SIGINT ask for the end of the run.
        """
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        log = EventLog(self.folder)
        try:
            hindrance = self._wait_for_others()
            if hindrance:
                log.write("failed", cause=hindrance)
                print(f"supervisor: {hindrance}", flush=True)
                return EXIT_FAILED
            return self._attempts(log)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @property
    def cancelled(self) -> bool:
        return self.asked_to_end or (self.folder / CANCELLED_NAME).exists()

    def _wait_for_others(self) -> str | None:
        """Wait until this run may start; returns why it never may, or None."""
        waiting = [*self.finished, *self.ended]
        while waiting and not self.cancelled:
            for folder in list(waiting):
                how = how_it_ended(folder)
                if how is not None and how != "finished" and folder in self.finished:
                    return f"{folder.name}, which this run waits for, did not finish: {how}"
                if how is not None:
                    waiting.remove(folder)
            if waiting:
                time.sleep(WAIT_SECONDS)
        return "cancelled before it started" if self.cancelled else None

    def _attempts(self, log: EventLog) -> int:
        cluster = read_resolved(self.folder / "config.yaml").cluster
        rules = Rules(cluster.requeue, cluster.max_requeues)
        requeues = 0
        while True:
            before = len(read_events(self.folder))
            exit_code = self._attempt()
            events = read_events(self.folder)
            tries = self._tries(events, before)
            decision = decide(exit_code, tries, requeues, rules, self.cancelled)
            print(f"supervisor: {decision.reason}", flush=True)
            if decision.action == "requeue" and self._pause(tries):
                requeues += 1
                step = committed_step(self.folder)
                log.write("requeued", step, requeue=requeues, exit_code=exit_code, cause=decision.reason)
                continue
            told = last_ending(events[before:]) is not None or exit_code in (EXIT_DONE, EXIT_SAVED)
            if decision.action == "stop" or not told:
                log.write("failed", committed_step(self.folder), cause=decision.reason)
            return decision.exit_code

    def _attempt(self) -> int:
        """Run the node's agent to its end; returns its exit code, negative for a signal."""
        self.passed_on.clear()
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        variables |= {"LLMSCALE_NODE": "0", "LLMSCALE_NODES": "1", "LLMSCALE_JOB": str(os.getpid())}
        node = subprocess.Popen([*self.command, str(self.folder)], env=variables, stdin=subprocess.DEVNULL)
        while node.poll() is None:
            while self.passed_on:
                node.send_signal(self.passed_on.pop(0))
            time.sleep(POLL_SECONDS)
        return node.returncode

    def _tries(self, events: Sequence[Event], before: int) -> Tries:
        """What the events tell, and attempts that died before they wrote any."""
        started = any(event.kind == "started" for event in events[before:])
        self.silent = 0 if started else self.silent + 1
        steps = [(event.kind, event.step) for event in events]
        tries = tries_without_progress(steps, committed_step(self.folder) or 0)
        return replace(tries, failures=tries.failures + self.silent)

    def _pause(self, tries: Tries) -> bool:
        """Wait a little before the next attempt; returns False if the run was cancelled meanwhile."""
        in_vain = tries.failures + tries.stops
        deadline = time.monotonic() + min(LONGEST_PAUSE, self.first_pause * 2**in_vain)
        while time.monotonic() < deadline and not self.cancelled:
            time.sleep(POLL_SECONDS)
        return not self.cancelled

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.asked_to_end |= number in (signal.SIGTERM, signal.SIGINT)
        self.passed_on.append(signal.SIGTERM if number == signal.SIGINT else signal.Signals(number))
