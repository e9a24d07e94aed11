"""The coordinator by itself: what it orders, and what it says, for reports that are made up."""

from dataclasses import replace

import pytest

from llmscale.config.cluster import WatchdogSection
from llmscale.control.coordinator import Coordinator, Policy
from llmscale.control.messages import Failure, Report, decode_order, decode_report, encode
from llmscale.control.watchdog import Beat

NO_WATCHDOG = WatchdogSection(enabled=False)


class Cluster:
    """Agents that do what they are told at once, as far as a test lets them."""

    def __init__(self, nodes: int, usable: tuple[int, ...] = (), **options: float) -> None:
        self.committed: int | None = None
        policy = Policy(
            nodes,
            frozenset(usable or (nodes,)),
            processes=2,
            max_restarts=2,
            watchdog=NO_WATCHDOG,
            **options,  # pyright: ignore[reportArgumentType]
        )
        self.coordinator = Coordinator("c", policy, lambda: self.committed, 0.0)
        self.now = 0.0
        self.reports: dict[str, Report] = {}

    def join(self, index: int) -> str:
        agent = f"agent-{index}"
        self.reports[agent] = Report(agent, f"node{index}", f"10.0.0.{index}", index, 0)
        return agent

    def turn(self, seconds: float = 0.1, silent: tuple[str, ...] = ()) -> None:
        """Everybody but the silent reports, and follows the order that comes back."""
        self.now += seconds
        for agent, report in self.reports.items():
            if agent not in silent:
                self.reports[agent] = replace(report, number=report.number + 1)
                self.coordinator.receive(decode_report(encode(self.reports[agent])), self.now)
        self.coordinator.tick(self.now)
        for agent in self.reports:
            if agent not in silent and agent in self.coordinator.agents:
                self._follow(agent)

    def turns(self, count: int, silent: tuple[str, ...] = ()) -> None:
        for _ in range(count):
            self.turn(silent=silent)

    def say(self, agent: str, **changes: object) -> None:
        self.reports[agent] = replace(self.reports[agent], **changes)  # pyright: ignore[reportArgumentType]

    def _follow(self, agent: str) -> None:
        order = decode_order(encode(self.coordinator.order_for(agent)))
        report = replace(self.reports[agent], coordinator=order.coordinator, order=order.number)
        if order.kind == "wait":
            report = replace(report, state="idle")
        elif order.kind == "open":
            report = replace(report, state="open", generation=order.generation, port=4000 + order.generation)
        elif order.kind == "run" and (report.generation != order.generation or report.state == "open"):
            report = replace(report, state="running", generation=order.generation, failure=None)
        self.reports[agent] = report

    def states(self) -> list[str]:
        return [report.state for report in self.reports.values()]

    def kinds(self) -> list[str]:
        return [happening.kind for happening in self.coordinator.take_happenings() if happening.kind]


def failure(kind: str = "signal", rank: int = 0, **fields: object) -> Failure:
    return replace(Failure(rank, "node1", 7, "killed", None, "", (), kind), **fields)  # pyright: ignore


def running(nodes: int, usable: tuple[int, ...] = (), **options: float) -> Cluster:
    cluster = Cluster(nodes, usable, **options)
    for index in range(nodes):
        cluster.join(index)
    cluster.turns(4)
    assert cluster.states() == ["running"] * nodes
    return cluster


def test_ranks_start_when_all_nodes_are_there_in_the_order_of_nodes() -> None:
    cluster = Cluster(2)
    cluster.join(1)
    cluster.turns(50)
    assert cluster.states() == ["idle"]
    cluster.join(0)
    cluster.turns(4)
    orders = [cluster.coordinator.order_for(agent) for agent in ("agent-0", "agent-1")]
    places = [order.place for order in orders if order.place]
    assert [(place.node_rank, place.first_rank, place.world_size) for place in places] == [
        (0, 0, 4),
        (1, 2, 4),
    ]
    assert {(place.master_address, place.master_port) for place in places} == {("10.0.0.0", 4001)}


def test_nodes_that_do_not_come_are_waited_for_and_then_named() -> None:
    cluster = Cluster(3, join_seconds=20.0)
    cluster.join(0)
    cluster.join(2)
    cluster.turns(250)
    assert cluster.coordinator.exit_code == 75
    (told,) = [happening for happening in cluster.coordinator.take_happenings() if happening.kind]
    assert told.kind == "node_lost" and "node0, node2" in told.text


def test_no_new_ranks_before_the_last_of_the_old_ones_is_gone() -> None:
    cluster = running(3)
    cluster.say("agent-1", state="failed", failure=failure())
    # The third node is slow to hear that its ranks are to end.
    cluster.turns(20, silent=("agent-2",))
    assert cluster.coordinator.phase == "clearing"
    assert cluster.coordinator.generation == 1
    cluster.turns(6)
    assert cluster.states() == ["running"] * 3
    assert cluster.coordinator.generation == 2
    assert cluster.kinds() == ["failed", "restarted"]


def test_of_failures_on_several_nodes_the_silent_one_is_blamed() -> None:
    cluster = running(2)
    cluster.say(
        "agent-0", state="failed", failure=failure("error", rank=0, cause="connection lost", time=1.0)
    )
    cluster.say("agent-1", state="failed", failure=failure("signal", rank=2, cause="killed", time=2.0))
    cluster.turns(3)
    (told,) = [one for one in cluster.coordinator.take_happenings() if one.kind == "failed"]
    assert (told.details["rank"], told.details["cause"]) == (2, "killed")


def test_three_tries_without_progress_are_the_end() -> None:
    cluster = running(1)
    for _ in range(3):
        cluster.say("agent-0", state="failed", failure=failure("error"))
        cluster.turns(6)
    assert cluster.coordinator.exit_code == 3
    assert cluster.kinds().count("failed") == 3


def test_progress_renews_the_tries() -> None:
    cluster = running(1)
    for step in range(1, 12):
        cluster.committed = step
        cluster.say("agent-0", state="failed", failure=failure("error"))
        cluster.turns(6)
    assert cluster.coordinator.exit_code is None and cluster.states() == ["running"]


@pytest.mark.parametrize(("verdict", "code"), [(2, 2), (1, 1), (3, 3)])
def test_a_verdict_of_a_rank_is_final(verdict: int, code: int) -> None:
    cluster = running(2)
    cluster.say("agent-1", state="failed", failure=failure("refused", exit_code=verdict))
    cluster.turns(4)
    assert cluster.coordinator.exit_code == code


def test_a_lost_node_ends_the_attempt_where_nothing_else_is_allowed() -> None:
    cluster = running(2, lost_seconds=5.0)
    cluster.turns(80, silent=("agent-1",))
    assert cluster.coordinator.exit_code == 75
    assert cluster.kinds() == ["node_lost", "failed", "preempted"]


def test_with_elasticity_the_others_go_on_in_numbers_that_fit() -> None:
    cluster = running(4, usable=(2, 4), lost_seconds=5.0, regroup_seconds=1.0)
    cluster.turns(100, silent=("agent-3",))
    assert cluster.coordinator.members == ["agent-0", "agent-1"]
    assert cluster.states()[:3] == ["running", "running", "idle"]


def test_a_node_that_comes_back_is_taken_in_after_a_save() -> None:
    cluster = running(2, usable=(1, 2), lost_seconds=5.0, regroup_seconds=1.0)
    cluster.turns(90, silent=("agent-1",))
    assert cluster.coordinator.members == ["agent-0"]
    cluster.say("agent-1", state="idle")
    cluster.say("agent-0", beats={0: Beat("training", 9, 1, 1, 0.0)})
    cluster.turns(3)
    assert cluster.coordinator.order_for("agent-0").save
    cluster.say("agent-0", state="done", codes={0: 75, 1: 75})
    cluster.turns(8)
    assert cluster.coordinator.members == ["agent-0", "agent-1"]
    assert cluster.states() == ["running", "running"]
    assert "failed" not in cluster.kinds()[3:]


def test_a_signal_anywhere_saves_everywhere() -> None:
    cluster = running(2)
    cluster.say("agent-1", signal="SIGUSR1")
    cluster.turn()
    assert all(cluster.coordinator.order_for(agent).save for agent in cluster.reports)
    for first, agent in enumerate(cluster.reports):
        cluster.say(agent, state="done", codes={2 * first: 75, 2 * first + 1: 75})
    cluster.turn()
    assert cluster.coordinator.exit_code == 75
    assert cluster.kinds() == ["preempted"]
    assert {cluster.coordinator.order_for(agent).kind for agent in cluster.reports} == {"leave"}


def test_an_overtaken_report_changes_nothing() -> None:
    cluster = running(1)
    late = replace(cluster.reports["agent-0"], number=1, state="failed", failure=failure())
    cluster.coordinator.receive(late, cluster.now)
    cluster.turn()
    assert cluster.coordinator.phase == "running"
