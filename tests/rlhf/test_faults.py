"""Processes of a run of reinforcement learning die or hang, on a real Ray: what was lost is named, and the
run ends as if nothing had happened."""

import os
import signal
import time

import psutil
import pytest

from llmscale.runtime.events import Event
from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run, assert_same_tensors
from tests.rlhf.role_kills import DRIVER, RoleKill, killing, pid_of, plan
from tests.rlhf.word_runs import STEPS, make_place, overrides, told

pytestmark = pytest.mark.cluster

POOLS = {"train": 2, "critic": 1, "helpers": 1, "writers": 1}
LEARNING = ("train", "critic")
SECTIONS = (
    "rlhf.pools={train: {roles: [actor], processes: 2}, critic: {roles: [critic]}, "
    "helpers: {roles: [reference]}, writers: {roles: [rollout]}}",
    "rlhf.rollout.engine=transformers",
    "rlhf.update.minibatches=2",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def oracle(place: Place) -> Run:
    """The run that nothing disturbs."""
    return place.uninterrupted("oracle", *overrides(place, *SECTIONS))


def assert_same(run: Run, oracle: Run) -> None:
    """Each step stands once and equals the oracle's, and so do the models."""
    assert [line["step"] for line in read_metrics(run.folder)] == list(range(1, STEPS + 1))
    assert told(run) == told(oracle)
    for folder in (".", "critic"):
        assert_same_tensors(Run(run.folder / folder).tensors(), Run(oracle.folder / folder).tensors())


def lost(run: Run) -> Event:
    """The one loss of a run."""
    (event,) = run.events("worker_lost")
    return event


def assert_told(run: Run, kill: RoleKill) -> None:
    """Who died is named; only what is in no file is fetched from the last transaction."""
    if kill.pool == DRIVER:
        (failed,) = run.events("failed")
        assert "SIGKILL" in failed.details["cause"] and not run.events("worker_lost")
        return
    details = lost(run).details
    assert (details["pool"], details["rank"]) == (kill.pool, kill.rank)
    assert "has ended" in details["cause"]
    restarted, failed = run.events("pool_restarted"), run.events("failed")
    if kill.pool in LEARNING:
        assert not restarted and f"pool {kill.pool}" in failed[0].details["cause"]
    else:
        assert not failed and [event.details["pool"] for event in restarted] == [kill.pool]


def assert_nothing_left(run: Run) -> None:
    """No process of the run is there any more."""
    deadline = time.monotonic() + 20
    while left := [pid for pid in _pids(run) if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _pids(run: Run) -> list[int]:
    found = [pid_of(run, DRIVER, 0)]
    found += [pid_of(run, pool, rank) for pool, processes in POOLS.items() for rank in range(processes)]
    return [pid for pid in found if pid is not None]


def die(place: Place, oracle: Run, seed: int) -> None:
    kill = plan(seed, POOLS, STEPS)
    run = place.run(f"killed-{seed}")
    with killing(run, kill):
        assert place.train(run.folder.name, *overrides(place, *SECTIONS)) == 0, run.rank_logs()
    assert_same(run, oracle)
    assert_told(run, kill)
    assert_nothing_left(run)


@pytest.mark.parametrize("seed", range(len(POOLS) + 1))
def test_a_process_of_any_role_dies(place: Place, oracle: Run, seed: int) -> None:
    die(place, oracle, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_process_of_any_role_dies_anywhere(place: Place, oracle: Run, seed: int) -> None:
    die(place, oracle, seed)


def test_a_worker_that_hangs_is_named_and_replaced(place: Place, oracle: Run) -> None:
    kill = RoleKill("helpers", 0, 1, "rollout", 0.0)
    run = place.run("hangs")
    with killing(run, kill, lambda pid: os.kill(pid, signal.SIGSTOP)) as stopped:
        more = overrides(place, *SECTIONS, "rlhf.call_seconds=20")
        assert place.train("hangs", *more) == 0, run.rank_logs()
    assert_same(run, oracle)
    details = lost(run).details
    assert details["roles"] == ["reference"] and "is not done after 20 s" in details["cause"]
    assert f"(pid {stopped.pid}) is stopped by a signal" in details["cause"]
    assert len(run.events("pool_restarted")) == 1 and not run.events("failed")
    assert_nothing_left(run)


@pytest.mark.parametrize("server", ["gcs_server", "raylet"])
def test_a_ray_that_dies_is_told_and_the_driver_begins_again(place: Place, oracle: Run, server: str) -> None:
    run = place.run(f"no-{server}")
    kill = RoleKill(DRIVER, 0, 1, "rollout", 0.0)
    with killing(run, kill, lambda driver: kill_child(driver, server)):
        assert place.train(run.folder.name, *overrides(place, *SECTIONS)) == 0, run.rank_logs()
    assert_same(run, oracle)
    (failed,) = run.events("failed")
    assert "the Ray of this run is gone" in failed.details["cause"]
    assert_nothing_left(run)


def kill_child(parent: int, name: str) -> None:
    next(child for child in psutil.Process(parent).children() if child.name() == name).kill()
