"""One attempt of a run on a Ray: the driver that reserves nodes, places agents and runs the coordinator.

What the ranks do is between the agents and the coordinator, as on every other kind of cluster. The driver
only sees to it that there are agents: where one's machine is lost, it places another one as soon as Ray has
room for it, for as long as the coordinator has use for it.
"""

import signal
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from llmscale.config.load import read_resolved
from llmscale.config.schema import Config
from llmscale.control.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_SAVED
from llmscale_launcher.ray.actor import AgentStart
from llmscale_launcher.ray.coordinator import CoordinatorProcess
from llmscale_launcher.ray.nodes import RayNodes
from llmscale_launcher.ray.placement import agents_of, exit_code_without_place, shortage, smaller_sizes

POLL_SECONDS = 0.25
REMIND_SECONDS = 60.0
ALL_NODES_SECONDS = 20.0
"""How long an elastic run waits for all of its nodes before it begins with fewer."""
TRY_SECONDS = 5.0
"""How long bundles take at most when there is room for them."""
AGAIN_SECONDS = 3.0
"""Between two agents for the same node, and between two looks for machines that have joined."""
LEAVE_SECONDS = 10.0
"""How long the agents may take to leave when the coordinator has: all that it knew have heard its verdict."""
ALONE_SECONDS = 15.0
"""How long the coordinator may go on when every agent has left by itself."""


@dataclass(frozen=True)
class Commands:
    """What runs where, each before the run folder."""

    coordinate: tuple[str, ...]
    node: tuple[str, ...]
    preflight: tuple[str, ...]


def llmscale_commands(config: Config) -> Commands:
    """The ones of every run."""
    python = config.cluster.python or sys.executable
    return Commands(
        coordinate=(sys.executable, "-m", "llmscale", "cluster", "coordinate"),
        node=(python, "-m", "llmscale", "cluster", "node"),
        preflight=(python, "-m", "llmscale", "cluster", "preflight"),
    )


class Attempt:
    """`Attempt(run_folder).run()` returns the attempt's exit code. Main thread only."""

    def __init__(
        self, run_folder: Path, ran_before: bool, preflight: bool = True, commands: Commands | None = None
    ) -> None:
        """
        Args:
            ran_before: whether an earlier attempt has found a place.
            preflight: whether the nodes are still to be looked at, if the config wants that.
        """
        self.folder = run_folder
        self.ran_before = ran_before
        self.preflight = preflight
        self.config = read_resolved(run_folder / "config.yaml")
        self.commands = commands or llmscale_commands(self.config)
        self.name = uuid.uuid4().hex[:12]
        self.nodes = RayNodes(agents_of(self.config))
        self.stop_signal: signal.Signals | None = None
        self.stop_passed_on = False
        self.left: dict[int, int] = {}
        """Exit codes of agents that have left by themselves."""
        self.next_try: dict[int, float] = {}
        """When a node without an agent may get one, by the monotonic clock."""

    def run(self) -> int:
        self._listen()
        self.nodes.connect()
        self._listen()  # Ray has put a handler of its own there
        try:
            if not self._reserve():
                return self._without_place()
            if (code := self._preflight()) != EXIT_DONE:
                return code
            coordinator = CoordinatorProcess(
                self.commands.coordinate, self.folder, self.nodes.own_address(), self._variables()
            )
            try:
                return self._keep_agents(coordinator)
            finally:
                coordinator.end()
        finally:
            self.nodes.close()

    def _listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.stop_signal = signal.Signals(number)

    def _reserve(self) -> bool:
        """Get bundles for all nodes or, elastic and after a while, for fewer; False if there are none."""
        elastic = self.config.cluster.elastic
        deadline = time.monotonic() + self.config.cluster.ray.wait_seconds
        while self.stop_signal is None and (left := deadline - time.monotonic()) > 0:
            if self._reserve_within(self.nodes.ask.nodes, min(left, ALL_NODES_SECONDS) if elastic else left):
                return True
            fewest = elastic.min_nodes if elastic else self.nodes.ask.nodes
            for size in smaller_sizes(self.nodes.ask, self.nodes.machines(), fewest):
                if self._reserve_within(size, TRY_SECONDS):
                    self.say(f"begins with {size} of {self.nodes.ask.nodes} nodes")
                    return True
        return False

    def _reserve_within(self, size: int, seconds: float) -> bool:
        began = time.monotonic()
        remind = began + TRY_SECONDS
        self.nodes.reserve(size)
        while not self.nodes.is_reserved(POLL_SECONDS):
            now = time.monotonic()
            if self.stop_signal is not None or now - began > seconds:
                return False
            if now > remind:
                remind = now + REMIND_SECONDS
                self.say(f"waits for a place. {shortage(self.nodes.ask, self.nodes.machines())}")
        return True

    def _without_place(self) -> int:
        if self.stop_signal is not None:
            return EXIT_SAVED
        machines = self.nodes.machines()
        self.say(f"found no place in time. {shortage(self.nodes.ask, machines)}")
        return exit_code_without_place(self.nodes.ask, machines, self.ran_before)

    def _preflight(self) -> int:
        """Have all nodes looked at before training; returns 0 where they are fit. Where workers of
        reinforcement learning will be is not known yet, and the driver's own machine is to give orders."""
        wanted = self.preflight and self.config.cluster.preflight
        if not wanted or self.config.task == "rlhf":
            return EXIT_DONE
        variables = {
            "LLMSCALE_RENDEZVOUS": self.nodes.first_endpoint(),
            "LLMSCALE_NODES": str(len(self.nodes.bundles)),
        }
        for node in self.nodes.bundles:
            self.nodes.start(node, self._start_of(node, self.commands.preflight, variables))
        codes: list[int] = []
        while self.nodes.have_agents and self.stop_signal is None:
            for end in self.nodes.poll(POLL_SECONDS):
                codes.append(EXIT_SAVED if end.exit_code is None else shell_exit_code(end.exit_code))
        if self.stop_signal is not None:
            return EXIT_SAVED
        if max(codes) != EXIT_DONE:
            self.say(f"preflight failed, see {self.folder / 'preflight.json'}")
        return max(codes)

    def _keep_agents(self, coordinator: CoordinatorProcess) -> int:
        """See to it that every node has an agent until the coordinator has ended; returns its verdict."""
        address = coordinator.address()
        if address is None:
            self.say("the coordinator did not start")
            return shell_exit_code(coordinator.end())
        for node in self.nodes.bundles:
            self._place(node, address)
        alone_since = None
        while coordinator.exit_code is None:
            self._pass_on_stop()
            self._hear_ends()
            self._fill_places(address)
            if self.nodes.have_agents:
                alone_since = None
                continue
            alone_since = alone_since or time.monotonic()
            if self.left and time.monotonic() - alone_since > ALONE_SECONDS:
                self.say("all agents have left by themselves")
                return max(self.left.values()) or EXIT_FAILED
        self._wait_for_agents()
        return shell_exit_code(coordinator.end())

    def _place(self, node: int, coordinator: str, machine: str | None = None) -> None:
        start = self._start_of(node, self.commands.node, {"LLMSCALE_COORDINATOR": coordinator})
        if machine is None:
            self.nodes.start(node, start)
        else:
            self.nodes.start_on(machine, node, start)

    def _start_of(self, node: int, command: tuple[str, ...], variables: dict[str, str]) -> AgentStart:
        cluster = self.config.cluster
        setup = "\n".join(cluster.setup)
        script = f'ulimit -c 0\ncd "$1" || exit 1\nshift\n{setup}\nexec "$@"'
        arguments = (str(Path.cwd()), *command, str(self.folder))
        return AgentStart(
            command=("/bin/bash", "-c", script, "agent", *arguments),
            variables=cluster.environment | self._variables() | {"LLMSCALE_NODE": str(node)} | variables,
            run_folder=self.folder,
            attempt=self.name,
            log=self.folder / "logs" / f"node-{node}.log",
        )

    def _variables(self) -> dict[str, str]:
        own = {"LLMSCALE_NODES": str(self.nodes.ask.nodes), "LLMSCALE_JOB": self.name}
        # Where its workers are to be placed. All that Ray starts has its token already.
        return own | ({"RAY_ADDRESS": self.nodes.ray_address()} if self.config.task == "rlhf" else {})

    def _fill_places(self, coordinator: str) -> None:
        """Place agents again whose machines were lost, and those that have had no place so far."""
        now = time.monotonic()
        for node in self.nodes.without_agent:
            if node in self.left or now < self.next_try.get(node, 0.0):
                continue
            self.next_try[node] = now + AGAIN_SECONDS
            if node in self.nodes.bundles:
                self._place(node, coordinator)
            elif machines := self.nodes.unoccupied():
                self._place(node, coordinator, machines[0].id)

    def _pass_on_stop(self) -> None:
        if self.stop_signal is not None and not self.stop_passed_on:
            self.say(f"{self.stop_signal.name}: asks the agents to save and leave")
            self.nodes.send(self.stop_signal)
            self.stop_passed_on = True

    def _hear_ends(self) -> None:
        for end in self.nodes.poll(POLL_SECONDS):
            self.say(f"agent of node {end.node} has ended: {end.reason}")
            self.next_try[end.node] = time.monotonic() + AGAIN_SECONDS
            if end.exit_code is not None and end.exit_code >= 0:
                self.left[end.node] = end.exit_code

    def _wait_for_agents(self) -> None:
        """Let agents leave that have heard the verdict, unlike one that has only just been placed."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while self.nodes.placed() and time.monotonic() < deadline:
            self._hear_ends()

    def say(self, text: str) -> None:
        print(f"driver: {text}", flush=True)


def shell_exit_code(code: int) -> int:
    """`code` as a process may end with it: 128 + n for signal n."""
    return code if code >= 0 else 128 - code
