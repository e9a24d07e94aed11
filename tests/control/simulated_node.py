"""A process of an agent in the simulator, with its ranks and its place in the network."""

from typing import TYPE_CHECKING

from llmscale.control.coordinator import Coordinator
from llmscale.control.messages import Order
from tests.control.simulated_training import SimulatedRanks

if TYPE_CHECKING:
    from tests.control.simulator import Simulation

TURN_SECONDS = 1.5
ABANDON_SECONDS = 60.0


class SimulatedNode:
    """One agent process, its ranks, and its place in the network. A new process is a new one of these."""

    def __init__(self, run: "Simulation", attempt: int, index: int) -> None:
        self.run = run
        self.attempt = attempt
        self.index = index
        self.number = next(run.numbers)
        self.alive = True
        self.drift = run.chance.uniform(0, 1e6)
        """Every machine's clock began at another time."""
        self.ranks = SimulatedRanks(run, self, f"node{index}")
        policy = run.policy
        self.agent = run.machines.agent(
            f"node{index}-{self.number}",
            f"node{index}",
            f"node{index}",
            index,
            self.ranks,
            policy.fence_seconds,
            policy.join_seconds,
            ABANDON_SECONDS,
            self.clock(),
        )
        self.coordinator: Coordinator | None = None
        """In the same process, on the first node."""

    @property
    def cut(self) -> bool:
        return self.index in self.run.cut

    @property
    def master(self) -> str:
        """Whose orders the agent follows."""
        return self.agent.order.coordinator if self.agent.order else ""

    def clock(self) -> float:
        return self.run.now + self.drift

    def ranks_changed(self) -> None:
        if self.alive:
            self.run.later(0.05, self.notice)

    def notice(self) -> None:
        if not self.alive:
            return
        if self.index == 0:
            self.run.first_turn(self)
        else:
            self.turn()

    def repeat(self) -> None:
        """A turn every TURN_SECONDS for as long as the process lives."""
        if self.alive:
            self.notice()
            self.run.later(TURN_SECONDS, self.repeat)

    def turn(self) -> None:
        """An agent of another node than the first: look after the ranks, and report."""
        self.agent.tick(self.clock())
        if self.agent.exit_code is not None:
            self.end()
        else:
            self.run.send_report(self, self.agent.report(self.clock()))

    def hear(self, order: Order) -> None:
        if not self.alive:
            return
        agent = self.agent
        before = agent.state, agent.order and agent.order.number, agent.examined
        agent.receive(order, self.clock())
        agent.tick(self.clock())
        if agent.exit_code is not None:
            self.end()
        elif before != (agent.state, agent.order and agent.order.number, agent.examined):
            self.run.send_report(self, agent.report(self.clock()))

    def end(self) -> None:
        """The process is gone, and with it its ranks."""
        self.alive = False
        self.coordinator = None
        self.ranks.kill()
