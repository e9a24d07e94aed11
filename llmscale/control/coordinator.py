"""Decides what all agents of a run do: when ranks start, when they end, and how it all ends. No torch.

A pure state machine: reports and the time go in, orders and happenings come out. Nothing here knows of
sockets, processes or clocks, so a simulator can drive it through any weather.

    gathering -> opening -> running -> (clearing -> gathering)* -> ended

A *generation* is one start of all ranks. Before the next one starts, every agent of the last has said that
its ranks are gone, or has been silent for so long that it has ended them by itself (see
`llmscale.control.node`): ranks of two generations never run at the same time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmscale.config.cluster import WatchdogSection
from llmscale.control.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_NO_PROGRESS, EXIT_SAVED
from llmscale.control.hangs import HangWatch
from llmscale.control.messages import Failure, Happening, Order, OrderKind, Place, Report, first_failure

Phase = Literal["gathering", "opening", "running", "clearing", "ended"]


@dataclass(frozen=True)
class Policy:
    """What the run allows. Times are in seconds."""

    nodes: int
    usable: frozenset[int]
    """Numbers of nodes that it can run on: `nodes`, and with elasticity those that layout and batch fit."""
    processes: int
    """Ranks a node."""
    max_restarts: int
    """In a row without a newer committed checkpoint."""
    watchdog: WatchdogSection = WatchdogSection()
    stages: int = 1
    """Pipeline stages."""
    join_seconds: float = 600.0
    """How long to wait for all nodes at the beginning, and for enough of them later."""
    regroup_seconds: float = 3.0
    """How long to wait for another node before going on with fewer."""
    lost_seconds: float = 10.0
    """A node that says nothing for this long is lost."""

    @property
    def elastic(self) -> bool:
        return len(self.usable) > 1

    @property
    def fence_seconds(self) -> float:
        """An agent that hears nothing for this long ends its ranks: well before it counts as lost."""
        return 0.6 * self.lost_seconds


@dataclass
class Seen:
    """An agent as the coordinator knows it."""

    report: Report
    heard: float


class Coordinator:
    """Orders for every agent that has reported; `exit_code` when it is over."""

    def __init__(
        self, name: str, policy: Policy, committed_step: Callable[[], int | None], now: float
    ) -> None:
        """`name` is this coordinator's alone; `committed_step` tells the step of the newest checkpoint."""
        self.name = name
        self.policy = policy
        self.committed_step = committed_step
        self.committed = self.committed_before = committed_step()
        self.phase: Phase = "gathering"
        self.phase_began = now
        self.agents: dict[str, Seen] = {}
        self.orders: dict[str, Order] = {}
        self.order_number = 0
        self.step = self.committed or 0
        """The furthest step that a rank of this generation has told of."""
        self.generation = 0
        self.members: list[str] = []
        self.failures: list[Failure] = []
        self.remaining = policy.max_restarts
        self.stop: str | None = None
        self.saving = False
        self.growing = False
        self.ready_before: tuple[str, ...] = ()
        self.ready_changed = now
        self.hangs: HangWatch | None = None
        self.exit_code: int | None = None
        self.happenings: list[Happening] = []

    # What comes in.

    def receive(self, report: Report, now: float) -> None:
        """Take in what an agent says of itself."""
        before = self.agents.get(report.agent)
        if before is not None and before.report.number >= report.number:
            return
        if before is None and self.generation:
            self._tell("node_joined", f"{report.host} has joined", host=report.host)
        self.agents[report.agent] = Seen(report, now)
        self.orders.setdefault(report.agent, self._order("wait"))
        if report.generation == self.generation:
            self.step = max([self.step, *(beat.step for beat in report.beats.values())])
        if report.signal:
            self.ask_to_stop(report.signal)

    def ask_to_stop(self, signal_name: str) -> None:
        """Have all ranks save and leave."""
        if self.stop is None:
            self.stop = signal_name
            again = "; Ctrl-C again ends it at once" if signal_name == "SIGINT" else ""
            self._say(f"{signal_name}: saving after this step{again}")

    def tick(self, now: float) -> None:
        """Go on as far as possible."""
        self._drop_lost(now)
        step = {
            "gathering": self._gather,
            "opening": self._wait_for_store,
            "running": self._watch,
            "clearing": self._wait_for_clearing,
            "ended": self._keep_ended,
        }[self.phase]
        step(now)
        self._give_orders()

    # What goes out.

    def order_for(self, agent: str) -> Order:
        """The order that stands for an agent that has reported."""
        return replace(self.orders[agent], answers=self.agents[agent].report.number)

    def take_happenings(self) -> list[Happening]:
        """What happened since the last call."""
        taken, self.happenings = self.happenings, []
        return taken

    # The phases.

    def _gather(self, now: float) -> None:
        if self.stop is not None:
            self._tell("preempted", cause="asked to stop before the start")
            self._end(EXIT_SAVED, now)
            return
        ready = self._ready()
        names = tuple(seen.report.agent for seen in ready)
        if names != self.ready_before:
            self.ready_before, self.ready_changed = names, now
        count = self._nodes_to_start(len(ready), now)
        if count:
            self._open([seen.report.agent for seen in ready[:count]], now)
        elif now - self.phase_began >= self.policy.join_seconds:
            came = ", ".join(seen.report.host for seen in ready) or "none"
            waited = f"{len(ready)} of {self.policy.nodes} nodes came within {self.policy.join_seconds:g} s"
            self._tell("node_lost", f"{waited}: {came}", cause=f"{waited}: {came}")
            self._end(EXIT_SAVED, now)

    def _nodes_to_start(self, ready: int, now: float) -> int | None:
        """How many of the nodes that are ready to start with; None: go on waiting."""
        if ready >= self.policy.nodes:
            return self.policy.nodes
        usable = max((count for count in self.policy.usable if count <= ready), default=None)
        if self.generation == 0:
            return usable if now - self.phase_began >= self.policy.join_seconds else None
        return usable if now - self.ready_changed >= self.policy.regroup_seconds else None

    def _open(self, members: list[str], now: float) -> None:
        self.generation += 1
        self.committed = self.committed_step()
        self.step = self.committed or 0
        self.members = members
        self.failures = []
        self.saving = self.growing = False
        ranks = range(len(members) * self.policy.processes)
        if self.policy.watchdog.enabled:
            self.hangs = HangWatch(self.policy.watchdog, ranks, self.policy.stages)
        if self.generation > 1:
            nodes = f" on {len(members)} of {self.policy.nodes} nodes" if self.policy.nodes > 1 else ""
            text = f"restarting from step {self.committed or 0}{nodes}"
            self._tell(
                "restarted", text, step=self.committed, restart=self.generation - 1, nodes=len(members)
            )
        self._enter("opening", now)

    def _wait_for_store(self, now: float) -> None:
        if self._lost_members():
            self._enter("clearing", now)
        elif self._carried_out(self.members[0], "open"):
            self._enter("running", now)

    def _watch(self, now: float) -> None:
        reports = [seen.report for seen in self._present()]
        ours = [report for report in reports if report.generation == self.generation]
        if self._lost_members() or any(report.state == "failed" for report in ours):
            self._enter("clearing", now)
            return
        if len(ours) == len(self.members) and all(report.state == "done" for report in ours):
            self._conclude(ours, now)
            return
        if self.stop is not None:
            self.saving = True
        self._grow(now)
        self._watch_steps(now)

    def _conclude(self, reports: Sequence[Report], now: float) -> None:
        """All ranks are done."""
        saved = any(EXIT_SAVED in report.codes.values() for report in reports)
        if saved and self.growing and self.stop is None:
            self._enter("clearing", now)
            return
        self._tell("preempted" if saved else "finished")
        self._end(EXIT_SAVED if saved else EXIT_DONE, now)

    def _grow(self, now: float) -> None:
        """Let the ranks save and leave when nodes wait that the run could use."""
        if self.growing or self.saving or not self.policy.elastic or len(self.members) == self.policy.nodes:
            return
        present = len(self._ready()) + len(self.members)
        more = max((count for count in self.policy.usable if count <= present), default=0)
        if more > len(self.members) and self.step > (self.committed or 0):
            self.growing = self.saving = True
            self._say(f"{more} nodes are there: saving, to go on with all of them")

    def _wait_for_clearing(self, now: float) -> None:
        """Until no rank of this generation can be running."""
        present = self._present()
        for seen in present:
            failure = seen.report.failure
            if failure and seen.report.generation == self.generation and failure not in self.failures:
                self.failures.append(failure)
        if all(self._is_clear(seen) for seen in present):
            self._judge(now)

    def _judge(self, now: float) -> None:
        """Say whose fault it was, and go on or not."""
        self.committed = self.committed_step()
        if self.growing and not self.failures:
            self._enter("gathering", now)
            return
        failure = self._blame()
        self._tell(
            "failed",
            failure.describe(),
            rank=failure.rank,
            host=failure.host,
            pid=failure.pid,
            cause=failure.cause,
            failure=failure.kind,
            log_lines=failure.log_lines,
        )
        if (self.committed or 0) > (self.committed_before or 0):
            self.remaining = self.policy.max_restarts
        self.committed_before = self.committed
        if failure.exit_code is not None:
            self._end(failure.exit_code, now)
        elif self.stop is not None:
            # The newest checkpoint is what a requeued run goes on from.
            self._tell("preempted", step=self.committed, cause="failed while stopping")
            self._end(EXIT_SAVED, now)
        elif failure.kind == "node lost" and not self.policy.elastic:
            self._tell("preempted", step=self.committed, cause=failure.cause)
            self._end(EXIT_SAVED, now)
        elif self.remaining:
            self.remaining -= 1
            self._enter("gathering", now)
        elif self.policy.max_restarts == 0:
            self._end(EXIT_FAILED, now)
        else:
            tries = self.policy.max_restarts + 1
            self._say(f"given up: {tries} tries in a row brought no new checkpoint")
            self._end(EXIT_NO_PROGRESS, now)

    def _blame(self) -> Failure:
        """A lost node first: ranks elsewhere fail because of it. Then a hang, then what the ranks said."""
        for kind in ("node lost", "hang"):
            for failure in self.failures:
                if failure.kind == kind:
                    return failure
        return first_failure(self.failures)

    def _keep_ended(self, now: float) -> None:
        """Agents that come late are told to leave, too."""

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self.phase_began = now
        self.ready_before, self.ready_changed = (), now

    def _end(self, code: int, now: float) -> None:
        self.exit_code = code
        self._enter("ended", now)

    # Agents.

    def _drop_lost(self, now: float) -> None:
        for agent, seen in list(self.agents.items()):
            if now - seen.heard < self.policy.lost_seconds:
                continue
            del self.agents[agent], self.orders[agent]
            if agent in self.members and self.phase in ("opening", "running", "clearing"):
                host = seen.report.host
                cause = f"{host} was not heard of for {self.policy.lost_seconds:g} s"
                first = min(seen.report.beats, default=0)
                self.failures.append(Failure(first, host, 0, cause, None, "", (), "node lost"))
                self._tell("node_lost", f"lost {host}", host=host, cause=cause)

    def _present(self) -> list[Seen]:
        """The members of this generation that are not lost."""
        return [self.agents[agent] for agent in self.members if agent in self.agents]

    def _lost_members(self) -> bool:
        return len(self._present()) < len(self.members)

    def _is_clear(self, seen: Seen) -> bool:
        """It has no ranks, and has had the order to have none."""
        report, order = seen.report, self.orders[seen.report.agent]
        return (
            order.kind == "wait"
            and report.coordinator == self.name
            and report.order >= order.number
            and report.state == "idle"
        )

    def _ready(self) -> list[Seen]:
        """Agents that could start, in the order of their nodes; of two on one place, the younger."""
        places: dict[int, Seen] = {}
        for seen in sorted(self.agents.values(), key=lambda seen: seen.heard - seen.report.number * 1e-9):
            if self._is_clear(seen) and seen.report.signal is None:
                places[seen.report.index] = seen
        return [places[index] for index in sorted(places)]

    def _carried_out(self, agent: str, state: str) -> bool:
        report, order = self.agents[agent].report, self.orders[agent]
        return report.order >= order.number and report.generation == self.generation and report.state == state

    # Orders.

    def _give_orders(self) -> None:
        for agent in self.agents:
            self._renew(agent, self._wanted(agent))

    def _wanted(self, agent: str) -> Order:
        if self.phase == "ended":
            return self._order("leave", exit_code=self.exit_code or 0)
        if agent not in self.members or self.phase in ("gathering", "clearing"):
            return self._order("wait", generation=self.generation)
        if self.phase == "opening":
            kind = "open" if agent == self.members[0] else "wait"
            return self._order(kind, generation=self.generation)
        return self._order(
            "run",
            generation=self.generation,
            place=self._place(agent),
            save=self.saving,
            examine=self.hangs.examination if self.hangs else 0,
        )

    def _place(self, agent: str) -> Place:
        first = self.agents[self.members[0]].report
        node_rank = self.members.index(agent)
        return Place(
            node_rank=node_rank,
            nodes=len(self.members),
            first_rank=node_rank * self.policy.processes,
            processes=self.policy.processes,
            world_size=len(self.members) * self.policy.processes,
            master_address=first.address,
            master_port=first.port,
            restart_count=self.generation - 1,
        )

    def _order(self, kind: OrderKind, **fields: Any) -> Order:
        return Order(coordinator=self.name, number=0, kind=kind, **fields)

    def _renew(self, agent: str, wanted: Order) -> None:
        standing = self.orders[agent]
        if standing.number == 0 or replace(standing, number=0) != wanted:
            self.order_number += 1
            self.orders[agent] = replace(wanted, number=self.order_number)

    def _watch_steps(self, now: float) -> None:
        if self.hangs is None:
            return
        reports = {agent: self.agents[agent].report for agent in self.members}
        ages = {agent: now - self.agents[agent].heard for agent in self.members}
        self.hangs.look(now, reports, ages)
        for happening in self.hangs.take_happenings():
            self.happenings.append(replace(happening, step=self.step if happening.kind else None))
        if self.hangs.hang is not None:
            self.failures.append(self.hangs.hang)
            self._enter("clearing", now)

    # Words.

    def _tell(self, kind: str, text: str = "", step: int | None = None, **details: Any) -> None:
        self.happenings.append(Happening(kind, self.step if step is None else step, details, text))

    def _say(self, text: str) -> None:
        self.happenings.append(Happening("", None, {}, text))
