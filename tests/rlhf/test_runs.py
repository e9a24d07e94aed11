"""Whole runs of reinforcement learning on a real Ray: every placement of the models gives the same run, and a
run that is stopped goes on as if nothing had happened."""

import signal
import time
from typing import Any

import pytest

from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run, assert_same_tensors
from tests.rlhf.word_runs import APART, STEPS, make_place, overrides, told

pytestmark = pytest.mark.cluster

PLACEMENTS: dict[str, tuple[str, ...]] = {
    "apart": (f"rlhf.pools={APART}",),
    "actor with reference": (
        "rlhf.pools={train: {roles: [actor, reference], processes: 2}, critic: {roles: [critic]}}",
    ),
    "all on one": ("rlhf.pools={all: {roles: [actor, reference, critic], processes: 2}}",),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("rlhf"))


def close(run: Run, oracle: Run) -> None:
    found, expected = told(run), told(oracle)
    assert len(found) == len(expected) == STEPS
    for ours, theirs in zip(found, expected):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def apart(place: Place) -> Run:
    return place.uninterrupted("apart", *overrides(place, "rlhf.update.minibatches=2", *PLACEMENTS["apart"]))


@pytest.mark.parametrize(
    "placement", [pytest.param("actor with reference", marks=pytest.mark.soak), "all on one"]
)
def test_every_placement_gives_the_same_run(place: Place, apart: Run, placement: str) -> None:
    name = placement.replace(" ", "-")
    run = place.uninterrupted(name, *overrides(place, "rlhf.update.minibatches=2", *PLACEMENTS[placement]))
    close(run, apart)


def test_the_first_step_is_of_the_policy_that_answered(apart: Run) -> None:
    first: dict[str, Any] = read_metrics(apart.folder)[0]
    assert first["first_ratio"] == 1.0 and first["first_kl_old"] == 0.0
    assert first["kl_answer"] == pytest.approx(0, abs=1e-4) and first["rollout_gap"] < 1e-4


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(place: Place, apart: Run) -> None:
    more = overrides(place, "rlhf.update.minibatches=2", *PLACEMENTS["apart"])
    assert place.train("stopped", *more, "train.stop_at=1") == 0
    run = place.uninterrupted("stopped", *more)
    assert told(run) == told(apart)
    assert_same_tensors(run.tensors(), apart.tensors())
    assert_same_tensors(Run(run.folder / "critic").tensors(), Run(apart.folder / "critic").tensors())


def test_a_run_goes_on_in_other_pools_under_other_layouts(place: Place, apart: Run) -> None:
    minibatches = "rlhf.update.minibatches=2"
    assert place.train("moved", *overrides(place, minibatches, *PLACEMENTS["apart"]), "train.stop_at=1") == 0
    layouts = "rlhf.roles={actor: {parallel: {tensor: 2}}, critic: {zero_stage: 3}}"
    run = place.uninterrupted("moved", *overrides(place, minibatches, layouts, *PLACEMENTS["all on one"]))
    close(run, apart)


def test_a_signal_to_the_whole_process_group_saves(place: Place) -> None:
    """As `timeout` sends it, or a terminal that closes: the run's Ray must not end by it before the run."""
    endless = ("rlhf.algorithm=grpo", "train.steps=1000", "checkpoint.every=1000")
    run = place.run("hung-up")
    with place.start("hung-up", *overrides(place, *endless)) as command:
        deadline = time.monotonic() + 200
        while not run.last_step():
            assert command.process.poll() is None and time.monotonic() < deadline, run.rank_logs()
            time.sleep(0.1)
        command.send(signal.SIGHUP, to_group=True)
        assert command.wait() == 75, run.rank_logs()
    assert run.committed_steps() == [run.last_step()]
