"""Runs on a real Ray of three raylets: raylets, ranks, agents, drivers die; the numbers stay the same."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.ray.jobs import JobServer

from tests.cluster.ray_cluster import RayCluster
from tests.cluster.ray_runs import RayPlace, RaySubmitted
from tests.cluster.waiting import wait_until
from tests.distributed.trainings import Run, assert_same_run

pytestmark = pytest.mark.cluster

RAYLETS = 3
TP2_PP2_DP2 = (
    "parallel.tensor=2",
    "parallel.pipeline=2",
    "cluster.nodes=2",
    "cluster.processes_per_node=4",
    "train.steps=12",
)


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[RayCluster]:
    cluster = RayCluster(cpus=4)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def ray(shared_ray: RayCluster) -> RayCluster:
    """Three raylets; those that the test before killed are replaced."""
    while shared_ray.alive() < RAYLETS:
        shared_ray.add_node()
        wait_until(lambda: shared_ray.alive() == len(shared_ray.living()), "the new raylet is alive", 30)
    return shared_ray


@pytest.fixture
def place(ray: RayCluster, tmp_path: Path) -> RayPlace:
    return RayPlace.on(ray, tmp_path)


def raylet_to_kill(ray: RayCluster, submitted: RaySubmitted) -> int:
    """The node of a rank that is not the head, with which the job would end."""
    raylets = [ray.node_of(submitted.rank(rank)) for rank in (0, 1)]
    return next(node for node in raylets if node != 0)


def test_two_nodes_give_the_numbers_of_one(ray: RayCluster, place: RayPlace, oracle: Run) -> None:
    submitted = place.submit("two")
    submitted.wait_for_commit(3)
    assert ray.node_of(submitted.rank(0)) != ray.node_of(submitted.rank(1))
    submitted.finish(ray)
    assert_same_run(submitted.run, oracle)


def test_killed_rank_is_restarted_in_place(ray: RayCluster, place: RayPlace, oracle: Run) -> None:
    submitted = place.submit("rank")
    submitted.wait_for_commit(6)
    driver, rank = submitted.driver(), submitted.rank(1)
    rank.kill()
    failure = submitted.wait_for_event("failed")
    assert (failure.details["rank"], failure.details["pid"]) == (1, rank.pid)
    assert "SIGKILL" in failure.details["cause"]
    submitted.wait_for_event("restarted")
    assert driver.is_running()
    submitted.finish(ray)
    assert len(submitted.run.events("started")) == 1
    assert_same_run(submitted.run, oracle)


def test_killed_raylet_costs_an_attempt(ray: RayCluster, place: RayPlace, oracle: Run) -> None:
    submitted = place.submit("raylet")
    submitted.wait_for_commit(6)
    lost = submitted.agents_and_ranks()
    ray.kill_raylet(raylet_to_kill(ray, submitted))
    submitted.wait_for_event("node_lost")
    submitted.wait_for_event("requeued")
    submitted.wait_for_event("resumed")
    assert not set(lost) & set(submitted.agents_and_ranks())
    submitted.finish(ray)
    assert_same_run(submitted.run, oracle)


def test_elastic_run_goes_on_with_the_raylets_left_and_takes_in_a_new_one(
    ray: RayCluster, place: RayPlace
) -> None:
    elastic = ("cluster.nodes=3", "cluster.elastic=1", "train.global_batch_size=12", "train.steps=20000")
    submitted = place.submit("elastic", *elastic)
    submitted.wait_for_commit(6)
    ray.kill_raylet(raylet_to_kill(ray, submitted))
    submitted.wait_for_event("node_lost")
    assert submitted.wait_for_event("restarted").details["nodes"] == 2
    with_two = submitted.run.last_step()
    submitted.wait_until(lambda: submitted.run.last_step() > with_two + 6, "two nodes train", 60)
    ray.add_node()
    assert submitted.wait_for_event("restarted", count=2).details["nodes"] == 3
    with_three = submitted.run.last_step()
    submitted.wait_until(lambda: submitted.run.last_step() > with_three + 6, "three nodes train", 60)
    assert len(submitted.run.events("started")) == 1
    place.llmscale("cancel", "elastic", "--root", "runs")
    stream = submitted.run.stream()
    assert [line[0] for line in stream] == list(range(1, len(stream) + 1))
    assert {line[1] for line in stream} == {12 * step for step in range(1, len(stream) + 1)}


def test_killed_driver_is_started_again(ray: RayCluster, place: RayPlace, oracle: Run) -> None:
    submitted = place.submit("driver")
    submitted.wait_for_commit(6)
    left = submitted.agents_and_ranks()
    submitted.driver().kill()
    submitted.wait_for_event("resumed")
    assert not set(left) & set(submitted.agents_and_ranks())
    submitted.finish(ray)
    assert_same_run(submitted.run, oracle)


def test_status_logs_and_cancel_by_the_job_server(ray: RayCluster, place: RayPlace, oracle: Run) -> None:
    submitted = place.submit("cancel", "train.steps=20000")
    submitted.wait_for_commit(6)
    assert submitted.job(ray).status == "RUNNING"
    assert "running" in place.llmscale("status", "cancel", "--root", "runs").stdout
    assert "saved step" in place.llmscale("logs", "cancel", "--job", "--root", "runs").stdout
    assert "saved step 3" in ray.server.logs(submitted.record["id"])
    place.llmscale("cancel", "cancel", "--root", "runs")
    assert submitted.end(ray)[0] == "STOPPED"
    saved = submitted.run.committed_steps()[-1]
    assert submitted.run.last_step() == saved
    assert submitted.run.events("preempted")[-1].step == saved
    assert "cancelled" in place.llmscale("status", "cancel", "--root", "runs").stdout


def test_without_room_the_run_says_what_is_asked_and_what_is_there(ray: RayCluster, place: RayPlace) -> None:
    submitted = place.submit("large", "cluster.nodes=4", "cluster.ray.wait_seconds=6")
    assert submitted.end(ray) == ("FAILED", 2)
    said = ray.server.logs(submitted.record["id"])
    assert "asked for: 4 nodes with 1 CPU each, each on a machine of its own" in said
    assert "cluster.ray.placement=pack" in said
    assert "cluster.nodes=3" in said


def test_a_stage_waits_for_the_one_before(ray: RayCluster, place: RayPlace) -> None:
    stages = [
        {"name": "first", "config": "ray.yaml", "overrides": {"train.steps": 30}},
        {"name": "second", "config": "ray.yaml", "overrides": {"train.steps": 6}},
    ]
    pipeline = {"pipeline": {"name": "two", "stages": stages}}
    (place.place.folder / "two.yaml").write_text(yaml.safe_dump(pipeline))
    place.llmscale("submit", "two.yaml")
    first, second = (RaySubmitted(place.place.run(f"two-{name}")) for name in ("first", "second"))
    first.finish(ray)
    second.finish(ray)
    assert first.run.events("finished")[0].time < second.run.events("started")[0].time
    assert second.job(ray).status == "SUCCEEDED"


def test_without_the_token_nothing_is_told(ray: RayCluster, place: RayPlace) -> None:
    for token, said in ((None, "asks for a token"), ("0" * 64, "does not take this token")):
        stranger = JobServer(ray.address, token)
        calls = (
            stranger.version,
            stranger.jobs,
            partial(stranger.submit, "x", "true", {}, {}),
            partial(stranger.stop, "x"),
        )
        for call in calls:
            with pytest.raises(SubmitError, match=said):
                call()
    refused = RayPlace(place.place, {}).llmscale("submit", "ray.yaml", "run.name=stranger", check=False)
    assert refused.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH" in refused.stderr
    assert not place.place.run("stranger").folder.exists()
