"""Where ranks run does not change what they compute."""

import pytest

from tests.cluster.runs import SlurmPlace
from tests.distributed.trainings import TP2_PP2, Run, assert_same_run

pytestmark = pytest.mark.cluster

STEPS = "train.steps=12"


def test_three_dimensions_on_two_nodes(slurm_place: SlurmPlace) -> None:
    """Tensor 2 x pipeline 2 x data 2, four ranks a node, preflight first: the losses of a single rank."""
    layout = ("cluster.nodes=2", *TP2_PP2, "cluster.preflight=true", STEPS)
    submitted = slurm_place.submit("wide", *layout)
    submitted.finish()
    assert slurm_place.cluster.job(submitted.job)["nodes"] == "node[1-2]"
    alone = slurm_place.place.uninterrupted("alone", STEPS)
    found, expected = submitted.run.stream(), alone.stream()
    assert [line[:3] for line in found] == [line[:3] for line in expected]
    for line, like in zip(found, expected):
        assert line[3:5] == pytest.approx(like[3:5], rel=1e-5)  # loss and gradient norm


def test_two_jobs_share_their_nodes(slurm_place: SlurmPlace, oracle: Run) -> None:
    """Each with its own ports, at the same time on the same two nodes."""
    cluster = slurm_place.cluster
    where = ("cluster.nodes=2", "cluster.options=['--nodelist=node[3-4]']")
    both = [slurm_place.submit(name, *where) for name in ("left", "right")]
    for submitted in both:
        submitted.finish()
        assert_same_run(submitted.run, oracle)
    left, right = (cluster.job(submitted.job) for submitted in both)
    assert left["nodes"] == right["nodes"] == "node[3-4]"
    assert max(left["start_time"], right["start_time"]) < min(left["end_time"], right["end_time"])
