"""Reinforcement learning on a real Ray of three raylets that is there already, shared with others."""

from collections.abc import Iterator

import psutil
import pytest

from llmscale.commands.train import run_training
from llmscale.config.load import load_config
from llmscale.runtime.metrics import read_metrics
from tests.cluster.ray_cluster import RayCluster
from tests.cluster.ray_runs import RayPlace, RaySubmitted
from tests.cluster.rlhf_place import STEPS, make_rlhf

pytestmark = pytest.mark.cluster

BROKEN = "raise ImportError('the checkout, which has changed since')\n"


@pytest.fixture(scope="module")
def ray() -> Iterator[RayCluster]:
    """Six CPUs in all: one driver with four workers at a time."""
    cluster = RayCluster(cpus=2)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def place(ray: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> RayPlace:
    folder = tmp_path_factory.mktemp("rlhf")
    cluster = {"kind": "ray", "ray": {"address": ray.address}, "preflight": True}
    return RayPlace(make_rlhf(folder, cluster), ray.variables)


def submit(place: RayPlace, name: str, *overrides: str) -> RaySubmitted:
    place.llmscale("submit", "rlhf.yaml", f"run.name={name}", *overrides)
    return RaySubmitted(place.place.run(name))


def workers(ray: RayCluster) -> list[psutil.Process]:
    """Of all pools there are."""
    raylets = [ray.raylet(node) for node in ray.living()]
    return [child for raylet in raylets for child in raylet.children() if "Worker" in child.name()]


def test_what_never_fits_is_said_before_it_is_queued(place: RayPlace) -> None:
    pools = "{all: {roles: [actor, reference, critic], processes: 6}}"
    done = place.llmscale("submit", "rlhf.yaml", "run.name=large", f"rlhf.pools={pools}", check=False)
    assert done.returncode == 2
    assert "ask for 7 CPUs together" in done.stderr and "driver: 1 × 1 CPU" in done.stderr
    assert not (place.place.run("large").folder / "job.json").exists()


def test_two_runs_take_turns_on_a_ray_that_holds_one(ray: RayCluster, place: RayPlace) -> None:
    """Each with the workers of both its pools, from the code that was submitted."""
    runs = [submit(place, name, "cluster.ray.wait_seconds=300") for name in ("one", "other")]
    checkout = place.place.folder / "llmscale"
    checkout.mkdir()
    (checkout / "__init__.py").write_text(BROKEN)
    found = runs[0].wait_until(lambda: workers(ray)[3:] and workers(ray), "one has four workers", 200)
    assert len({ray.node_of(worker) for worker in found}) > 1
    for run in runs:
        run.finish(ray, seconds=300)
        assert [line["step"] for line in read_metrics(run.run.folder)] == list(range(1, STEPS + 1))
    (checkout / "__init__.py").unlink()
    checkout.rmdir()
    runs[0].wait_until(lambda: not workers(ray), "no worker is left", 20)


def test_cancel_saves_and_a_new_submit_goes_on(ray: RayCluster, place: RayPlace) -> None:
    submitted = submit(place, "long", "train.steps=1000", "checkpoint.every=1000")
    submitted.wait_until(lambda: submitted.run.last_step() >= 2, "two steps are made", 200)
    place.llmscale("cancel", "long", "--root", "runs")
    saved = submitted.run.last_step()
    assert submitted.run.committed_steps() == [saved]
    submitted.wait_until(lambda: not workers(ray), "no worker is left", 20)
    again = submit(place, "long", "train.steps=1000", f"train.stop_at={saved + 1}")
    again.finish(ray)
    assert [event.step for event in again.run.events("resumed")] == [saved]
    assert again.run.last_step() == saved + 1


def test_a_node_that_dies_is_named_and_the_run_goes_on_where_there_is_room(
    ray: RayCluster, place: RayPlace
) -> None:
    pools = (
        "{train: {roles: [actor]}, critic: {roles: [critic]}, helpers: {roles: [reference], processes: 2}}"
    )
    # So many that the node dies before the last of them.
    more = (f"rlhf.pools={pools}", "train.steps=60")
    submitted = submit(place, "node", *more)
    submitted.wait_for_commit(1, seconds=200)
    node = node_of_workers_alone(ray, submitted)
    ray.kill_raylet(node)
    lost = submitted.wait_for_event("worker_lost")
    assert "node" in lost.details["cause"] and lost.details["pool"] in ("train", "critic", "helpers")
    # Five processes need more than what two nodes have.
    ray.add_node()
    submitted.finish(ray, seconds=300)
    quiet = load_config(place.place.folder / "rlhf.yaml", [*more, "run.name=quiet", "cluster.kind=local"])
    assert run_training(quiet) == 0
    assert submitted.run.stream() == place.place.run("quiet").stream()


def node_of_workers_alone(ray: RayCluster, submitted: RaySubmitted) -> int:
    """With neither the head nor the agent and its driver on it."""
    kept = {0, *(ray.node_of(psutil.Process(pid)) for pid in submitted.agents_and_ranks())}
    return next(node for node in {ray.node_of(worker) for worker in workers(ray)} if node not in kept)
