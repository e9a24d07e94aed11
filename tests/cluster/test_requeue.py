"""Whatever makes SLURM take a job off its nodes and bring it back: no step is lost, none is repeated."""

import pytest

from tests.cluster.runs import DP2, SlurmPlace, Submitted
from tests.cluster.slurm.cluster import SlurmCluster
from tests.distributed.trainings import Run, assert_same_run

pytestmark = pytest.mark.cluster

EVERY_NODE = ("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")


def interrupt_by_signal(submitted: Submitted, cluster: SlurmCluster) -> None:
    """What SLURM does before the time limit, now."""
    cluster.run("scancel", "--batch", "--signal=USR1", str(submitted.job))


def saved_and_resumed(submitted: Submitted, times: int) -> None:
    """Every stop saved the step that it came in, and the run went on from there."""
    run = submitted.run
    stops = [event.step for event in run.events("preempted")]
    assert len(stops) == times
    assert [event.step for event in run.events("resumed")] == stops
    assert run.superseded() == []


def interruptions(place: SlurmPlace, cycles: int) -> Submitted:
    """A run that gets the signal of the time limit `cycles` times on its way, and finishes."""
    cluster = place.cluster
    submitted = place.submit("signals", *DP2, f"train.steps={cycles * 8 + 20}", "checkpoint.every=1000")
    for cycle in range(cycles):
        submitted.wait_for_step((submitted.run.committed_steps() or [0])[-1] + 3)
        interrupt_by_signal(submitted, cluster)
        submitted.wait_for_event("preempted", cycle + 1)
        submitted.wait_for_restart(cycle + 1)
    submitted.finish()
    return submitted


def check_interruptions(place: SlurmPlace, cycles: int) -> None:
    submitted = interruptions(place, cycles)
    saved_and_resumed(submitted, cycles)
    steps = f"train.steps={cycles * 8 + 20}"
    assert_same_run(submitted.run, place.place.uninterrupted("oracle", "cluster.processes_per_node=2", steps))
    states = [state for _, state, _ in place.cluster.sacct(submitted.job)]
    assert states == ["REQUEUED"] * cycles + ["COMPLETED"]


def test_signal_before_the_time_limit(slurm_place: SlurmPlace) -> None:
    check_interruptions(slurm_place, 10)


@pytest.mark.soak
def test_many_signals(slurm_place: SlurmPlace) -> None:
    check_interruptions(slurm_place, 50)


def test_real_time_limit(slurm_place: SlurmPlace) -> None:
    """SLURM's own clock: a limit of a minute, and its signal comes well before."""
    limits = ("cluster.time=1", "cluster.signal_seconds=20", "train.steps=100000", "checkpoint.every=1000000")
    submitted = slurm_place.submit("limit", *limits)
    submitted.wait_for_event("preempted", seconds=90)
    submitted.wait_for_restart(1)
    submitted.wait_for_event("resumed")
    saved_and_resumed(submitted, 1)
    slurm_place.cancel("limit")
    assert slurm_place.cluster.restarts(submitted.job) == 1


def test_preemption_and_scontrol_requeue(slurm_place: SlurmPlace, oracle: Run) -> None:
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("preempted", *DP2, "cluster.partition=low")
    submitted.wait_for_step(5)
    important = cluster.sbatch("--partition=high", *EVERY_NODE)
    submitted.wait_for_event("preempted")
    cluster.wait_for(important, "RUNNING", seconds=60)
    assert cluster.job(submitted.job)["job_state"] == "PENDING"
    cluster.run("scancel", str(important))
    submitted.wait_for_restart(1)
    submitted.wait_for_event("resumed")
    saved_and_resumed(submitted, 1)

    submitted.wait_for_commit(submitted.run.committed_steps()[-1] + 3)
    cluster.run("scontrol", "requeue", str(submitted.job))
    submitted.wait_for_restart(2)
    submitted.finish()
    assert_same_run(submitted.run, oracle)
