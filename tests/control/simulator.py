"""A whole run in virtual time: coordinators, agents, requeues and checkpoints through a seeded bad week.

The state machines are the real ones (`llmscale.control`); around them are simulated clocks, ranks, disks and
a network that loses, doubles, delays and reorders. Nodes crash, are cut off and come back, ranks die and
hang, schedulers preempt and requeue. Whatever happens:

- ranks of two generations of one coordinator never run at the same time;
- a step of the run's history has one writer, and later steps never come from earlier starts;
- what has been committed is what a later start goes on from;
- every schedule ends: with the run done, or stopped with a code that says why.

    python -m tests.control.simulator 100000
"""

import heapq
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from llmscale.config.cluster import WatchdogSection
from llmscale.control.coordinator import Coordinator, Policy
from llmscale.control.messages import Order, Place, Report
from llmscale.control.node import NodeAgent
from llmscale.control.requeue import MOST_FAILURES, Rules, decide, tries_without_progress
from tests.control.schedules import Plan, make_plan
from tests.control.simulated_node import SimulatedNode
from tests.control.simulated_training import SimulatedRanks, Storage, Training, Violation

FAREWELL_SECONDS = 10.0
GRACE_SECONDS = 30.0
LONGEST = 5_000.0
MOST_GENERATIONS = 60
LOCK_SECONDS = 60.0
KILLED = -9
WATCHDOG_OFF = WatchdogSection(enabled=False)
WATCHDOG_ON = WatchdogSection(name_after=4.0, restart_after=12.0, start_seconds=30.0)
BEGIN = 0.0


@dataclass(frozen=True)
class Machines:
    """What is put to the test; tests plant mistakes here."""

    agent: type[NodeAgent] = NodeAgent
    coordinator: type[Coordinator] = Coordinator
    fences: bool = True


class Simulation:
    """One schedule; `run()` returns the exit code that the run ends with."""

    def __init__(self, plan: Plan, machines: Machines) -> None:
        self.plan = plan
        self.machines = machines
        self.chance = Random(plan.seed + 1)
        self.now = BEGIN
        self.queue: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self.numbers = itertools.count(1)
        self.storage = Storage(machines.fences)
        self.events: list[tuple[str, int | None]] = [("submitted", None)]
        self.policy = Policy(
            nodes=plan.nodes,
            usable=frozenset(range(plan.min_nodes, plan.nodes + 1)),
            processes=1,
            max_restarts=plan.max_restarts,
            watchdog=WATCHDOG_ON if plan.hangs else WATCHDOG_OFF,
            join_seconds=30.0,
        )
        self.cut: set[int] = set()
        self.attempt = 0
        self.attempt_began = BEGIN
        self.requeues = 0
        self.nodes: list[SimulatedNode] = []
        self.lingering: list[SimulatedNode] = []
        """Cut off when their attempt ended, and still at work."""
        self.told: dict[str, int] = {}
        self.trainings: dict[int, Training] = {}
        self.exit_code: int | None = None
        self.ending = False
        self.trace: list[str] = []

    def run(self) -> int:
        for when, what, index, seconds in self.plan.faults:
            self.later(when, self.fault, what, index, seconds)
        self.start_attempt()
        while self.exit_code is None:
            if not self.queue:
                raise Violation("nothing is left to happen, and the run has not ended")
            self.now, _, action, arguments = heapq.heappop(self.queue)
            if self.now > LONGEST:
                raise Violation(f"no end after {self.attempt} attempts")
            action(*arguments)
        self.check_end(self.exit_code)
        return self.exit_code

    def later(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        heapq.heappush(self.queue, (self.now + seconds, next(self.numbers), action, arguments))

    def log(self, text: str) -> None:
        self.trace.append(f"{self.now:8.2f} {text}")

    # What ranks ask for.

    def open_port(self) -> int:
        return next(self.numbers)

    def training_at(self, place: Place) -> Training:
        training = self.trainings.get(place.master_port)
        if training is None:
            training = self.trainings[place.master_port] = Training(self, place.nodes)
        return training

    def check_alone(self, ranks: SimulatedRanks, port: int) -> None:
        """All ranks that one coordinator has started are of one generation. (Those of another one, which is
        cut off and not yet gone, may run on; fences keep what they save out of history.)"""
        master = ranks.node.master
        for node in (*self.nodes, *self.lingering):
            other = node.ranks
            if other.alive and other is not ranks and node.master == master and other.port != port:
                raise Violation(f"ranks start on {ranks.host} while others run on node{node.index}")

    # Attempts.

    def start_attempt(self) -> None:
        self.attempt += 1
        self.attempt_began = self.now
        self.ending = False
        self.told = {}
        self.nodes = []
        self.log(f"attempt {self.attempt} from {self.storage.newest_step()}")
        tries = tries_without_progress(self.events, self.storage.newest_step())
        if tries.failures >= MOST_FAILURES:
            self.later(1.0, self.end_attempt, 3, self.attempt)
            return
        for index in range(self.plan.nodes):
            self.later(self.chance.uniform(0.1, 2.0), self.start_node, index, self.attempt)

    def start_node(self, index: int, attempt: int) -> None:
        if attempt != self.attempt or self.ending:
            return
        if index == 0 and self.plan.locks and any(node.coordinator for node in self.lingering):
            # The attempt before is not gone; this one waits for a while.
            if self.now - self.attempt_began > LOCK_SECONDS:
                self.end_attempt(75, attempt)
            else:
                self.later(1.0, self.start_node, index, attempt)
            return
        node = SimulatedNode(self, attempt, index)
        self.nodes.append(node)
        if index == 0:
            committed = self.storage.newest_step
            node.coordinator = self.machines.coordinator(
                f"coordinator-{node.number}", self.policy, committed, self.now
            )
            self.events.append(("started", committed() or 0))
        node.repeat()

    def first_turn(self, node: SimulatedNode) -> None:
        """The first node's agent and the coordinator take turns until nothing changes."""
        coordinator, agent = node.coordinator, node.agent
        if coordinator is None:
            return
        for _ in range(5):
            before = agent.state, agent.order and agent.order.number, coordinator.order_number
            if agent.exit_code is None:
                coordinator.receive(agent.report(node.clock()), self.now)
                coordinator.tick(self.now)
                agent.receive(coordinator.order_for(agent.name), node.clock())
                agent.tick(node.clock())
            else:
                coordinator.tick(self.now)
            if before == (agent.state, agent.order and agent.order.number, coordinator.order_number):
                break
        if coordinator.generation > MOST_GENERATIONS:
            raise Violation(f"{MOST_GENERATIONS} generations and no end")
        self.note_happenings(coordinator)
        self.give_orders(coordinator)
        if coordinator.exit_code is None:
            return
        if node.attempt != self.attempt:
            self.reap(node)
        elif not self.ending:
            self.ending = True
            self.wait_for_farewell(self.attempt, self.now, coordinator.exit_code)

    def note_happenings(self, coordinator: Coordinator) -> None:
        for happening in coordinator.take_happenings():
            self.log(f"{happening.kind} {happening.text.splitlines()[0] if happening.text else ''}")
            if happening.kind:
                self.events.append((happening.kind, happening.step))

    def wait_for_farewell(self, attempt: int, since: float, code: int) -> None:
        """The first node's process stays until the others know, or for a while."""
        if attempt != self.attempt:
            return
        reachable = [node for node in self.nodes if node.alive and node.index and not node.cut]
        if reachable and self.now - since < FAREWELL_SECONDS:
            self.later(0.5, self.wait_for_farewell, attempt, since, code)
            return
        self.end_attempt(code, attempt, by_itself=True)

    def end_attempt(self, code: int, attempt: int, by_itself: bool = False) -> None:
        """The scheduler ends what is left of the job, as far as it reaches, and decides."""
        if attempt != self.attempt or self.exit_code is not None:
            return
        self.log(f"attempt {attempt} ends with {code}")
        self.attempt += 1
        for node in self.nodes:
            if node.alive and node.cut and not (by_itself and node.index == 0):
                self.lingering.append(node)
            elif node.alive:
                node.end()
        self.nodes = []
        tries = tries_without_progress(self.events, self.storage.newest_step())
        decision = decide(code, tries, self.requeues, Rules(True, self.plan.max_requeues))
        self.log(f"{decision.action} {decision.exit_code}: {decision.reason}")
        if decision.action != "requeue":
            self.exit_code = decision.exit_code
            return
        self.requeues += 1
        self.events.append(("requeued", None))
        self.later(self.chance.uniform(1, 20), self.start_attempt)

    # The network.

    def is_cut(self, node: SimulatedNode) -> bool:
        return bool(self.cut & {0, node.index})

    def send_report(self, node: SimulatedNode, report: Report) -> None:
        for _ in range(1 + (self.chance.random() < self.plan.double)):
            if not self.is_cut(node) and self.chance.random() >= self.plan.loss:
                delay = self.chance.random() * self.plan.delay
                self.later(delay, self.hear_report, node, report)

    def hear_report(self, node: SimulatedNode, report: Report) -> None:
        first = next((one for one in self.nodes if one.index == 0), None)
        coordinator = first and first.coordinator
        if coordinator is None or first is None or self.is_cut(node):
            return
        coordinator.receive(report, self.now)
        self.first_turn(first)
        if report.agent in coordinator.agents:
            self.send_order(node, coordinator.order_for(report.agent))

    def give_orders(self, coordinator: Coordinator) -> None:
        for node in (*self.nodes, *self.lingering):
            name = node.agent.name
            if node.index == 0 or name not in coordinator.agents:
                continue
            order = coordinator.order_for(name)
            if self.told.get(name) != order.number:
                self.told[name] = order.number
                self.send_order(node, order)

    def send_order(self, node: SimulatedNode, order: Order) -> None:
        for _ in range(1 + (self.chance.random() < self.plan.double)):
            if not self.is_cut(node) and self.chance.random() >= self.plan.loss:
                self.later(self.chance.random() * self.plan.delay, node.hear, order)

    # What goes wrong.

    def fault(self, what: str, index: int, seconds: float) -> None:
        self.log(f"{what} {index} {seconds}")
        node = next((one for one in self.nodes if one.index == index and one.alive), None)
        if what == "node cut" or what == "node dies":
            self.cut.add(index)
            self.later(seconds, self.heal, index)
            if index == 0:
                self.later(self.chance.uniform(7, 20), self.miss_first_node, self.attempt)
        if node is None:
            return
        if what == "rank dies":
            node.ranks.die("signal", None)
        elif what == "rank hangs":
            node.ranks.hanging = True
        elif what in ("agent dies", "node dies"):
            self.agent_dies(node)
        elif what == "preempt":
            self.preempt()
        elif what == "requeue":
            self.end_attempt(KILLED, self.attempt)

    def miss_first_node(self, attempt: int) -> None:
        """A scheduler that does not reach a job's first node starts the job again elsewhere."""
        if 0 in self.cut:
            self.end_attempt(KILLED, attempt)

    def heal(self, index: int) -> None:
        self.cut.discard(index)
        self.log(f"node{index} is back")
        for node in [one for one in self.lingering if one.index == index]:
            # It may get through to the new attempt's coordinator before the scheduler finds and ends it.
            self.later(self.chance.uniform(0, 20), self.reap, node)

    def reap(self, node: SimulatedNode) -> None:
        node.end()
        if node in self.lingering:
            self.lingering.remove(node)

    def agent_dies(self, node: SimulatedNode) -> None:
        node.end()
        if node.index == 0:
            # The job's first process is gone: the scheduler sees it, sooner or later.
            self.later(self.chance.uniform(0.5, 15), self.end_attempt, KILLED, self.attempt)
        elif self.plan.respawn:
            self.later(self.chance.uniform(1, 20), self.start_node, node.index, self.attempt)

    def preempt(self) -> None:
        """Every agent gets a signal; what is left after a while is killed."""
        for node in self.nodes:
            self.later(self.chance.uniform(0, 1), node.agent.stop, "SIGTERM")
        self.later(GRACE_SECONDS, self.end_attempt, KILLED, self.attempt)

    # The end.

    def check_end(self, code: int) -> None:
        newest = self.storage.newest_step() or 0
        if (code == 0) != (newest >= self.plan.steps and code == 0):
            raise Violation(f"exit code 0 at step {newest} of {self.plan.steps}")
        if code == 0 and self.plan.crash_step is not None:
            raise Violation("done in spite of a crash in every try")
        if code == 3 and not self.gave_up_for_a_reason():
            raise Violation(f"gave up with progress: {self.events}")
        if code in (75, 1) and self.requeues < self.plan.max_requeues:
            raise Violation(f"ended with {code} after {self.requeues} requeues")
        if code == 2 and self.plan.crash_code != 2:
            raise Violation("refused without a reason")
        if code not in (0, 1, 2, 3, 75):
            raise Violation(f"ended with exit code {code}")

    def gave_up_for_a_reason(self) -> bool:
        newest, last_save = 0, 0
        for number, (kind, step) in enumerate(self.events):
            if kind == "saved" and (step or 0) > newest:
                newest, last_save = step or 0, number
        since = self.events[last_save:]
        failed = sum(kind == "failed" for kind, _ in since)
        started = sum(kind == "started" for kind, _ in since)
        return failed > self.plan.max_restarts or started + bool(newest) >= MOST_FAILURES


def simulate(seed: int, machines: Machines | None = None) -> int:
    """Run the schedule of `seed`; returns the run's exit code.

    Raises:
        Violation: an invariant does not hold; the message ends with the trace.
    """
    simulation = Simulation(make_plan(seed), machines or Machines())
    try:
        return simulation.run()
    except Violation as violation:
        trace = "\n".join([str(simulation.plan), *simulation.trace])
        raise Violation(f"seed {seed}: {violation}\n{trace}") from None


def simulate_many(seeds: range, machines: Machines | None = None) -> dict[int, int]:
    """How many schedules ended with each exit code."""
    codes: dict[int, int] = {}
    for seed in seeds:
        code = simulate(seed, machines)
        codes[code] = codes.get(code, 0) + 1
    return codes


def main(count: int, processes: int) -> None:
    began = time.monotonic()
    chunks = [range(start, min(start + 500, count)) for start in range(0, count, 500)]
    total: dict[int, int] = {}
    with multiprocessing.Pool(processes) as pool:
        for codes in pool.imap_unordered(simulate_many, chunks):
            for code, number in codes.items():
                total[code] = total.get(code, 0) + number
    seconds = time.monotonic() - began
    codes = ", ".join(f"{number} with {code}" for code, number in sorted(total.items()))
    print(f"{count} schedules in {seconds:.0f} s on {processes} processes; they ended: {codes}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, int(sys.argv[2]) if len(sys.argv) > 2 else 2)
