"""The coordinator at work: its links to the agents, and its words to `events.jsonl` and the terminal."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llmscale.control.coordinator import Coordinator, Policy
from llmscale.control.messages import Happening, Order, Report, decode_report, encode
from llmscale.runtime.events import EventLog
from llmscale.runtime.link import LinkServer
from llmscale.runtime.watcher import Watcher

POLL_SECONDS = 0.05
FAREWELL_SECONDS = 10.0
"""How long agents of other nodes may take to hear that it is over."""


class Coordination:
    """Runs a `Coordinator` for the agents of other nodes and, if there is one, of this process."""

    def __init__(
        self,
        run_folder: Path,
        policy: Policy,
        committed_step: Callable[[], int | None],
        watcher: Watcher,
        server: LinkServer | None,
    ) -> None:
        """`server`: for the agents of other nodes; None where there are none."""
        now = time.monotonic()
        self.coordinator = Coordinator(secrets.token_hex(8), policy, committed_step, now)
        self.server = server
        self.watcher = watcher
        self.events = EventLog(run_folder)
        self.peers: dict[str, int] = {}
        self.told: dict[str, int] = {}
        self.ended: float | None = None
        self.events.write(
            "started",
            self.coordinator.committed or 0,
            pid=os.getpid(),
            host=socket.gethostname(),
            nodes=policy.nodes,
            processes=policy.processes,
        )

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it goes on."""
        return self.coordinator.exit_code

    def exchange(self, report: Report, now: float) -> Order:
        """Take the report of the agent in this process; returns its order."""
        self.coordinator.receive(report, now)
        self._go_on(now)
        return self.coordinator.order_for(report.agent)

    def poll(self, now: float, seconds: float) -> None:
        """Hear the agents of other nodes, for `seconds` at most, and answer each."""
        if self.server is None:
            time.sleep(seconds)
            return
        heard: set[str] = set()
        for peer, line in self.server.poll(now, seconds):
            report = decode_report(line)
            self.coordinator.receive(report, time.monotonic())
            self.peers[report.agent] = peer
            heard.add(report.agent)
        self._go_on(time.monotonic())
        self._give_orders(heard)

    def is_over(self, now: float) -> bool:
        """Whether it has ended and all agents of other nodes know."""
        if self.exit_code is None:
            return False
        if self.ended is None:
            self.ended = now
        alone = self.server is None or not self.server.peers
        return alone or now - self.ended > FAREWELL_SECONDS

    def close(self) -> None:
        if self.server is not None:
            self.server.close()

    def _go_on(self, now: float) -> None:
        self.coordinator.tick(now)
        for happening in self.coordinator.take_happenings():
            self._tell(happening)

    def _give_orders(self, heard: set[str]) -> None:
        """To agents that have just reported, as the answer that renews their lease, and to all whose order
        is new."""
        assert self.server is not None
        for agent, peer in self.peers.items():
            if agent not in self.coordinator.agents:
                continue
            order = self.coordinator.order_for(agent)
            if agent in heard or self.told.get(agent) != order.number:
                self.server.send(peer, encode(order))
                self.told[agent] = order.number

    def _tell(self, happening: Happening) -> None:
        if happening.kind:
            self.events.write(happening.kind, happening.step, **happening.details)  # pyright: ignore[reportArgumentType]
        if happening.text:
            self.watcher.say(happening.text)


def run_alone(coordination: Coordination, signals: Sequence[str]) -> int:
    """Run a coordinator that has a process to itself; returns the exit code.

    Args:
        signals: names of the signals that have come to this process, as they come.
    """
    while not coordination.is_over(time.monotonic()):
        for name in signals:
            coordination.coordinator.ask_to_stop(name)
        coordination.poll(time.monotonic(), POLL_SECONDS)
        coordination.watcher.poll()
    return coordination.exit_code or 0
