"""Ranks, agents, nodes, networks and the controller die under a run; its numbers stay the same."""

import pytest

from tests.cluster.runs import DP2, SlurmPlace
from tests.cluster.waiting import wait_until
from tests.distributed.trainings import Run, assert_same_run

pytestmark = pytest.mark.cluster

AGENT = "llmscale cluster node"


def test_killed_rank_is_restarted_in_place(slurm_place: SlurmPlace, oracle: Run) -> None:
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("rank", *DP2)
    submitted.wait_for_commit(6)
    pid = submitted.rank_pid(1)
    cluster.nodes["node2"].signal("KILL", pid)
    failure = submitted.wait_for_event("failed")
    assert failure.details["rank"] == 1
    assert failure.details["host"] == "node2"
    assert failure.details["pid"] == pid
    assert "SIGKILL" in failure.details["cause"]
    submitted.finish()
    assert len(submitted.run.events("restarted")) == 1
    assert cluster.restarts(submitted.job) == 0
    assert_same_run(submitted.run, oracle)


def test_killed_agent(slurm_place: SlurmPlace, oracle: Run) -> None:
    """The coordinator misses the node and asks for another turn."""
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("agent", *DP2)
    submitted.wait_for_commit(6)
    node = cluster.nodes["node2"]
    node.signal("KILL", node.pids(AGENT)[-1])
    submitted.wait_for_event("node_lost")
    submitted.wait_for_restart(1)
    submitted.finish()
    assert_same_run(submitted.run, oracle)


@pytest.mark.parametrize("lost", [pytest.param("node1", marks=pytest.mark.soak), "node2"])
def test_crashed_node_is_replaced(slurm_place: SlurmPlace, oracle: Run, lost: str) -> None:
    """The first node has the batch script and the coordinator, the second only ranks."""
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("crash", *DP2)
    submitted.wait_for_commit(6)
    assert cluster.job(submitted.job)["nodes"] == "node[1-2]"
    cluster.nodes[lost].crash()
    submitted.wait_for_restart(1)
    assert cluster.node_states()[lost].startswith("DOWN")
    submitted.finish()
    assert_same_run(submitted.run, oracle)


def test_elastic_run_goes_on_with_the_nodes_left(slurm_place: SlurmPlace) -> None:
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("elastic", *DP2, "cluster.elastic=1")
    submitted.wait_for_commit(6)
    cluster.nodes["node2"].crash()
    lost = submitted.wait_for_event("node_lost")
    assert lost.details["host"] == "node2"
    assert submitted.wait_for_event("restarted").details["nodes"] == 1
    submitted.finish()
    assert cluster.restarts(submitted.job) == 0
    alone = slurm_place.place.uninterrupted("alone", f"train.steps={submitted.run.last_step()}")
    assert [line[0] for line in submitted.run.stream()] == [line[0] for line in alone.stream()]
    losses = [[line[3] for line in run.stream()] for run in (submitted.run, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_controller_is_killed_and_comes_back(slurm_place: SlurmPlace, oracle: Run) -> None:
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("controller", *DP2)
    submitted.wait_for_step(10)
    cluster.kill_controller()
    seen = submitted.run.last_step()
    submitted.wait_for_step(seen + 5)
    cluster.start_controller()
    submitted.finish()
    assert cluster.restarts(submitted.job) == 0
    assert_same_run(submitted.run, oracle)


@pytest.mark.soak
@pytest.mark.parametrize("cut", ["node1", "node2"])
def test_cut_network_between_nodes(slurm_place: SlurmPlace, oracle: Run, cut: str) -> None:
    """A node that nobody reaches still sees the shared files. The ranks on both sides end by themselves, and
    neither they nor a script that is left over disturb the run that SLURM starts elsewhere."""
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("cut", *DP2)
    submitted.wait_for_commit(6)
    cluster.nodes[cut].cut()
    submitted.wait_for_restart(1, seconds=90)
    assert cut not in cluster.job(submitted.job)["nodes"]
    submitted.wait_for_event("resumed")
    cluster.nodes[cut].heal()
    submitted.finish()
    assert cluster.restarts(submitted.job) == 1
    wait_until(lambda: not cluster.nodes[cut].pids(AGENT), f"{cut} has no agent any more", 60)
    assert_same_run(submitted.run, oracle)


def test_cut_node_with_a_whole_run(slurm_place: SlurmPlace) -> None:
    """A split brain: the node that nobody reaches has all ranks and goes on, and SLURM starts the run again
    elsewhere. That one waits for the other's end."""
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("split", "train.steps=100000", "checkpoint.every=20")
    run, node = submitted.run, cluster.nodes["node1"]
    submitted.wait_for_commit(20)
    node.cut()
    submitted.wait_for_restart(1)
    assert cluster.job(submitted.job)["nodes"] == "node2"
    submitted.wait_until(lambda: cluster.nodes["node2"].pids(AGENT), "node2 has an agent", 60)
    submitted.wait_for_step(run.last_step() + 20)
    assert node.pids(AGENT) and not run.events("resumed")
    node.heal()
    resumed = submitted.wait_for_event("resumed")
    assert not node.pids(AGENT)
    submitted.wait_for_step(resumed.step + 20)
    slurm_place.cancel("split")
    steps = [line[0] for line in run.stream()]
    assert steps == list(range(1, len(steps) + 1))
    repeated = [line[0] for line in run.superseded()]
    assert repeated == list(range(resumed.step + 1, resumed.step + 1 + len(repeated)))


def test_deterministic_crash_is_not_requeued(slurm_place: SlurmPlace) -> None:
    """The corpus turns into tokens that no vocabulary has: from then on every try fails at the same step."""
    corpus = slurm_place.place.folder / "corpus.bin"
    submitted = slurm_place.submit("broken", *DP2, "checkpoint.every=1000")
    submitted.wait_for_step(1)
    corpus.write_bytes(b"\xff" * corpus.stat().st_size)
    submitted.end("FAILED")
    assert slurm_place.cluster.sacct(submitted.job)[-1][2] == "3:0"
    assert slurm_place.cluster.restarts(submitted.job) == 0
    assert len(submitted.run.events("failed")) == 4
