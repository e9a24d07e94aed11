"""A Ray of its own inside a SLURM allocation: brought up, used, requeued and taken down with the job."""

from pathlib import Path

import pytest
import yaml

from tests.cluster.runs import SlurmPlace, Submitted
from tests.cluster.waiting import wait_until
from tests.distributed.trainings import Run, assert_same_run

pytestmark = pytest.mark.cluster

RAY = {"kind": "ray", "nodes": 2, "ray": {"within": "slurm"}, "node_lost_seconds": 4}


@pytest.fixture
def place(slurm_place: SlurmPlace) -> SlurmPlace:
    sections = yaml.safe_load(slurm_place.config.read_text())
    sections["cluster"] |= RAY
    slurm_place.config.write_text(yaml.safe_dump(sections))
    return slurm_place


def wait_until_nothing_is_left(submitted: Submitted) -> None:
    """No process of Ray or of the run on any node, and no folder of Ray's."""

    def left() -> list[str]:
        nodes = submitted.cluster.nodes.values()
        return [
            node.run("pgrep", "--full", "--list-full", "--", "raylet|llmscale", check=False) for node in nodes
        ]

    wait_until(lambda: not any(left()), f"nothing is left:\n{left()}", 20)
    assert list(Path("/tmp").glob(f"llmscale-ray-{submitted.job}-*")) == []


def test_run_on_a_ray_of_its_own(place: SlurmPlace, oracle: Run) -> None:
    submitted = place.submit("in-slurm")
    submitted.wait_for_commit(3)
    assert [len(place.cluster.nodes[f"node{number}"].pids("raylet --raylet")) for number in (1, 2)] == [1, 1]
    submitted.finish()
    assert_same_run(submitted.run, oracle)
    wait_until_nothing_is_left(submitted)


def test_signal_saves_and_requeues(place: SlurmPlace, oracle: Run) -> None:
    submitted = place.submit("requeued")
    submitted.wait_for_commit(6)
    place.cluster.run("scancel", "--batch", "--signal=USR1", str(submitted.job))
    submitted.wait_for_event("preempted")
    submitted.wait_for_restart(1)
    submitted.finish()
    assert_same_run(submitted.run, oracle)
    assert submitted.run.superseded() == []
    wait_until_nothing_is_left(submitted)


@pytest.mark.soak
def test_two_jobs_with_a_ray_each_share_their_nodes(place: SlurmPlace, oracle: Run) -> None:
    jobs = [place.submit(f"sharing-{number}") for number in (1, 2)]
    for submitted in jobs:
        submitted.finish(seconds=300)
        assert_same_run(submitted.run, oracle)
