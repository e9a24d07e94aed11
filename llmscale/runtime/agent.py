"""One agent a node: carries out the coordinator's orders on this node's ranks, and says how it all ended.

The first node's agent has the coordinator in its own process, so that a run on one machine is one process
that starts ranks; agents of other nodes reach it through a `Link`. Who decides what is in
`llmscale.control`; here are the clock, the signals and the loop.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from llmscale.control.coordinator import Policy
from llmscale.control.exit_codes import EXIT_DONE, EXIT_FAILED
from llmscale.control.messages import decode_order, encode
from llmscale.control.node import NodeAgent
from llmscale.parallel.environment import NodeEnvironment
from llmscale.runtime import stop_signal
from llmscale.runtime.coordination import Coordination
from llmscale.runtime.events import EventLog
from llmscale.runtime.link import Link, LinkServer, read_token
from llmscale.runtime.local_ranks import LocalRanks
from llmscale.runtime.ranks import Entry, warm_up
from llmscale.runtime.rendezvous import LOOPBACK, listening_address, own_address
from llmscale.runtime.stop_signal import SIGNALS
from llmscale.runtime.watcher import Watcher

POLL_SECONDS = 0.05
REPORT_SECONDS = 0.25
"""Longest time between two reports over a link; what changes is told at once."""
ABANDON_SECONDS = 30.0
"""How long to look for a coordinator that was there before."""


@dataclass(frozen=True)
class Job:
    """What an agent is to run."""

    run_folder: Path
    entry: Entry
    """Called in every rank with `arguments`; returns 0 (done), 75 (saved) or a final verdict (1, 2, 3).
    Must be importable by name."""
    arguments: tuple[object, ...]
    policy: Policy
    committed_step: Callable[[], int | None]
    """Step of the newest committed checkpoint: what counts as progress."""
    interface: str | None = None
    """Network interface between the nodes; None: the one that leads to the first node."""


class _Interrupted(Exception):
    """A second Ctrl-C."""


class Agent:
    """Runs a `Job` on this node; `exit_code = Agent(job, watcher).run_job()`."""

    def __init__(self, job: Job, watcher: Watcher, environment: NodeEnvironment | None = None) -> None:
        """`environment`: this node's place among several; None: there is one."""
        self.job = job
        self.watcher = watcher
        self.environment = environment
        self.signals: list[signal.Signals] = []

    def run_job(self) -> int:
        """Run to the end; returns the exit code of section "Exit codes". Main thread only."""
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (*SIGNALS, signal.SIGINT)
            if signal.getsignal(number) != signal.SIG_IGN
        }
        if stop_signal.requested():
            # It came before this agent could hear it.
            self.signals.append(signal.SIGTERM)
        try:
            if self.environment is None or self.environment.has_coordinator:
                return self._run_with_coordinator()
            return self._run_with_link(self.environment)
        except _Interrupted:
            EventLog(self.job.run_folder).write("failed", None, cause="interrupted twice")
            self.watcher.say("interrupted; what was not saved is lost")
            return EXIT_FAILED
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run_with_coordinator(self) -> int:
        """The first node: agent and coordinator take turns."""
        environment, job = self.environment, self.job
        address, server = LOOPBACK, None
        if environment is not None and max(environment.nodes, job.policy.nodes) > 1:
            address = listening_address(environment.host, job.interface)
            server = LinkServer(address, environment.ports, read_token(job.run_folder))
        coordination = Coordination(job.run_folder, job.policy, job.committed_step, self.watcher, server)
        ranks = LocalRanks(job.run_folder, job.entry, job.arguments, address, job.interface)
        agent = self._agent(address, ranks)
        try:
            warm_up()
            self._take_turns(agent, coordination)
        finally:
            ranks.close()
            coordination.close()
        return agent.exit_code or EXIT_DONE

    def _take_turns(self, agent: NodeAgent, coordination: Coordination) -> None:
        while agent.exit_code is None or not coordination.is_over(time.monotonic()):
            now = time.monotonic()
            self._pass_signals(agent)
            before = _state(agent)
            if agent.exit_code is None:
                agent.receive(coordination.exchange(agent.report(now), now), now)
                agent.tick(now)
            # What has changed is told at once.
            coordination.poll(time.monotonic(), 0.0 if _state(agent) != before else POLL_SECONDS)
            self.watcher.poll()

    def _run_with_link(self, environment: NodeEnvironment) -> int:
        """Every other node: the coordinator is at the other end of a link."""
        job = self.job
        address = own_address(environment.host, job.interface)
        ranks = LocalRanks(job.run_folder, job.entry, job.arguments, address, job.interface)
        link = Link(environment.host, environment.ports, read_token(job.run_folder))
        try:
            warm_up()
            agent = self._agent(address, ranks)
            self._follow(agent, link)
        finally:
            ranks.close()
            link.hang_up("done", time.monotonic())
        if agent.reason:
            self.watcher.say(f"{agent.host}: {agent.reason} ({link.trouble})")
        return agent.exit_code or EXIT_DONE

    def _follow(self, agent: NodeAgent, link: Link) -> None:
        told, reported = None, -REPORT_SECONDS
        while agent.exit_code is None:
            now = time.monotonic()
            self._pass_signals(agent)
            for line in link.poll(now):
                agent.receive(decode_order(line), now)
            if agent.exit_code is not None:
                return
            agent.tick(now)
            if link.ready and (_state(agent) != told or now - reported >= REPORT_SECONDS):
                told, reported = _state(agent), now
                link.send(encode(agent.report(now)), now)
            self.watcher.poll()
            link.wait(POLL_SECONDS)

    def _agent(self, address: str, ranks: LocalRanks) -> NodeAgent:
        host, policy = socket.gethostname(), self.job.policy
        return NodeAgent(
            name=f"{host}-{os.getpid()}-{secrets.token_hex(4)}",
            host=host,
            address=address,
            index=self.environment.index if self.environment else 0,
            ranks=ranks,
            fence_seconds=policy.fence_seconds,
            join_seconds=policy.join_seconds,
            abandon_seconds=max(ABANDON_SECONDS, policy.lost_seconds),
            now=time.monotonic(),
        )

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self.signals:
            raise _Interrupted
        self.signals.append(signal.Signals(number))

    def _pass_signals(self, agent: NodeAgent) -> None:
        if self.signals:
            agent.stop(self.signals[0].name)


def _state(agent: NodeAgent) -> tuple[object, ...]:
    """What the coordinator should hear of at once."""
    return agent.state, agent.order and agent.order.number, agent.signal, agent.examined
