"""Several nodes: agents in processes of their own, joined by loopback, as launchers start them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from llmscale.config.load import load_config
from llmscale.runtime.run_folder import write_config
from tests.distributed.trainings import Place, Run, assert_same_run

NODES = ("cluster.nodes=2", "cluster.processes_per_node=2", "parallel.tensor=2")
"""Tensor parallelism within a node, data parallelism between them."""
ELASTIC = (
    "cluster.nodes=3",
    "cluster.elastic.min_nodes=1",
    "cluster.node_lost_seconds=3",
    "train.global_batch_size=12",
    "train.steps=4000",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("nodes"))


class Nodes:
    """The agents of one run."""

    def __init__(self, place: Place, name: str, overrides: tuple[str, ...]) -> None:
        self.config = load_config(place.config, [*overrides, f"run.name={name}"])
        self.run = place.run(name)
        self.folder = self.config.run_folder
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        write_config(self.config, self.folder)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.agents = {index: self.start(index) for index in range(self.config.cluster.nodes)}

    def start(self, index: int) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "LLMSCALE_NODE": str(index),
            "LLMSCALE_NODES": str(self.config.cluster.nodes),
            "LLMSCALE_RENDEZVOUS": f"127.0.0.1:{self.port}",
        }
        log = (self.folder / "logs" / f"node-{index}.log").open("a")
        command = [sys.executable, "-m", "llmscale", "cluster", "node", str(self.folder)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self, seconds: float = 90) -> list[int]:
        deadline = time.monotonic() + seconds
        return [agent.wait(max(0.1, deadline - time.monotonic())) for agent in self.agents.values()]

    def logs(self) -> str:
        return "\n".join(
            path.read_text()[-3000:] for path in sorted((self.folder / "logs").glob("node-*.log"))
        )

    def rank_pid(self, rank: int) -> int:
        lines = (self.folder / "logs" / f"rank-{rank}.log").read_text().splitlines()
        return int([line for line in lines if line.startswith("--- rank")][-1].split()[4])


@contextmanager
def started(place: Place, name: str, *overrides: str) -> Iterator[Nodes]:
    nodes = Nodes(place, name, overrides)
    try:
        yield nodes
    finally:
        for agent in nodes.agents.values():
            agent.kill()
            agent.wait()


def until(condition: Callable[[], bool], nodes: Nodes, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, nodes.logs()
        time.sleep(0.02)


def causes(run: Run, kind: str) -> list[str]:
    return [event.details["cause"] for event in run.events(kind)]


def test_two_nodes_train_what_one_does_and_a_killed_rank_is_named(place: Place) -> None:
    layout = ("parallel.tensor=2", "cluster.processes_per_node=4")
    oracle = place.uninterrupted("oracle", *layout, "train.steps=24")
    with started(place, "two", *NODES, "train.steps=24") as nodes:
        until(lambda: nodes.run.last_step() >= 7, nodes)
        os.kill(nodes.rank_pid(3), signal.SIGKILL)
        assert nodes.wait() == [0, 0], nodes.logs()
    (failure,) = nodes.run.events("failed")
    assert (failure.details["rank"], failure.details["failure"]) == (3, "signal")
    assert [event.details["restart"] for event in nodes.run.events("restarted")] == [1]
    assert_same_run(nodes.run, oracle)


@pytest.mark.soak
def test_without_elasticity_a_lost_node_ends_the_attempt(place: Place) -> None:
    overrides = (*NODES, "train.steps=400", "cluster.node_lost_seconds=3")
    with started(place, "lost", *overrides) as nodes:
        until(lambda: nodes.run.last_step() >= 4, nodes)
        nodes.agents[1].kill()
        assert nodes.agents[0].wait(60) == 75, nodes.logs()
    assert nodes.run.events("node_lost")
    assert [event.details["failure"] for event in nodes.run.events("failed")] == ["node lost"]


def test_with_elasticity_the_others_go_on_and_the_lost_node_may_come_back(place: Place) -> None:
    with started(place, "elastic", *ELASTIC) as nodes:
        until(lambda: nodes.run.last_step() >= 5, nodes)
        nodes.agents[1].kill()
        nodes.agents[1].wait()
        # Started any sooner it may be in time for the restart, and nobody would go on with fewer.
        until(lambda: len(nodes.run.events("restarted")) == 1, nodes)
        nodes.agents[1] = nodes.start(1)
        until(lambda: len(nodes.run.events("restarted")) == 2, nodes)
        regrown = nodes.run.last_step()
        until(lambda: nodes.run.last_step() > regrown + 3, nodes)
        nodes.agents[2].send_signal(signal.SIGTERM)
        assert nodes.wait() == [75, 75, 75], nodes.logs()
    assert [event.details["nodes"] for event in nodes.run.events("restarted")] == [2, 3]
    last = nodes.run.last_step()
    oracle = place.uninterrupted(
        "elastic-oracle", *ELASTIC[3:], "cluster.processes_per_node=3", f"train.stop_at={last}"
    )
    steps, expected = nodes.run.stream(), oracle.stream()
    # Same samples and tokens to the last one; losses to rounding, as other ranks have added them up.
    assert [line[:3] for line in steps] == [line[:3] for line in expected]
    assert max(abs(line[3] - other[3]) for line, other in zip(steps, expected)) < 1e-5


@pytest.mark.soak
def test_an_agent_that_was_away_ends_its_ranks_and_joins_again(place: Place) -> None:
    """Stopped for longer than the coordinator's patience: the others go on without it, and it must not
    come back with ranks of old."""
    with started(place, "away", *ELASTIC) as nodes:
        until(lambda: nodes.run.last_step() >= 5, nodes)
        nodes.agents[2].send_signal(signal.SIGSTOP)
        until(lambda: len(nodes.run.events("restarted")) == 1, nodes)
        until(lambda: nodes.run.last_step() > 12, nodes)
        nodes.agents[2].send_signal(signal.SIGCONT)
        until(lambda: len(nodes.run.events("restarted")) == 2, nodes)
        nodes.agents[0].send_signal(signal.SIGTERM)
        assert nodes.wait() == [75, 75, 75], nodes.logs()
    assert [event.details["nodes"] for event in nodes.run.events("restarted")] == [2, 3]
    steps = [line[0] for line in nodes.run.stream()]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.soak
def test_without_their_coordinator_agents_leave_and_another_attempt_goes_on(place: Place) -> None:
    with started(place, "orphaned", *NODES, "train.steps=4000") as nodes:
        until(lambda: nodes.run.last_step() >= 5, nodes)
        nodes.agents[0].kill()
        nodes.agents[0].wait()
        assert nodes.agents[1].wait(90) == 75, nodes.logs()
        committed = nodes.run.committed_steps()[-1]
        nodes.agents = {index: nodes.start(index) for index in range(2)}
        until(lambda: nodes.run.last_step() > committed + 3 and bool(nodes.run.events("resumed")), nodes)
        nodes.agents[0].send_signal(signal.SIGTERM)
        assert nodes.wait() == [75, 75], nodes.logs()
    assert nodes.run.events("resumed")[-1].step >= committed


def test_a_stopped_rank_is_named_and_restarted_and_a_signal_to_one_node_saves_on_all(place: Place) -> None:
    overrides = (
        *NODES,
        "train.steps=300",
        "cluster.watchdog.name_after=2",
        "cluster.watchdog.restart_after=4",
    )
    with started(place, "stopped", *overrides) as nodes:
        until(lambda: nodes.run.last_step() >= 5, nodes)
        os.kill(nodes.rank_pid(2), signal.SIGSTOP)
        until(lambda: bool(nodes.run.events("hanging")), nodes, 15)
        until(lambda: bool(nodes.run.events("restarted")), nodes, 15)
        before = nodes.run.last_step()
        until(lambda: nodes.run.last_step() > before, nodes)
        nodes.agents[1].send_signal(signal.SIGUSR1)
        assert nodes.wait() == [75, 75], nodes.logs()
    # A signal to any of the nodes saves on all of them.
    assert nodes.run.committed_steps()[-1] == nodes.run.last_step()
    assert nodes.run.events("preempted")
    (named,) = nodes.run.events("hanging")
    assert (named.details["rank"], named.details["cause"]) == (2, "is stopped by a signal")
    assert [event.details["failure"] for event in nodes.run.events("failed")] == ["hang"]
