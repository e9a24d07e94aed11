"""What a run asks of a Ray, what is said when that is not there, and with what it ends."""

import pytest
from llmscale_launcher.ray.placement import (
    Machine,
    agents_of,
    ask_of,
    cpus_in_all,
    exit_code_without_place,
    room,
    shortage,
    smaller_sizes,
)

from llmscale.config.cluster import ClusterSection
from llmscale.config.schema import Config

SMALL = [Machine("a", "10.0.0.1", cpus=4, gpus=0), Machine("b", "10.0.0.2", cpus=4, gpus=0)]
WITH_GPUS = [Machine("c", "10.0.0.3", cpus=96, gpus=8)]


def ask(**cluster: object):
    return ask_of(ClusterSection.model_validate({"kind": "ray", **cluster}))


def test_a_bundle_a_node() -> None:
    assert ask(nodes=2, processes_per_node=8, cpus_per_process=6, gpus_per_node=8).bundle == {
        "CPU": 48.0,
        "GPU": 8.0,
    }
    assert ask(processes_per_node=3).bundle == {"CPU": 3.0}
    assert ask(nodes=2).strategy == "STRICT_SPREAD"
    assert ask(nodes=2, ray={"placement": "pack"}).strategy == "PACK"


def rlhf(**cluster: object) -> Config:
    pools = {"one": {"roles": ["actor"], "processes": 4}, "two": {"roles": ["critic"], "processes": 2}}
    sections = {"task": "rlhf", "rlhf": {"pools": pools}, "cluster": {"kind": "ray", **cluster}}
    return Config.model_validate(sections)


def test_a_driver_asks_for_itself_alone() -> None:
    """Its workers find places of their own, from within the run."""
    there = agents_of(
        rlhf(nodes=3, processes_per_node=2, gpus_per_node=2, ray={"address": "http://head:8265"})
    )
    assert (there.nodes, there.bundle, there.strategy) == (1, {"CPU": 1.0}, "PACK")
    inside = agents_of(rlhf(nodes=3, processes_per_node=2, ray={"within": "slurm"}))
    assert inside.bundle == {"CPU": 1.0, "node:__internal_head__": 0.001}
    assert agents_of(Config.model_validate({"cluster": {"nodes": 2}})) == ask(nodes=2)


def test_a_local_ray_counts_driver_and_pools() -> None:
    assert cpus_in_all(rlhf(cpus_per_process=3)) == 6 * 3 + 1
    assert cpus_in_all(Config.model_validate({"cluster": {"nodes": 2, "processes_per_node": 3}})) == 6


@pytest.mark.parametrize(
    ("cluster", "machines", "fits"),
    [
        ({"nodes": 2, "processes_per_node": 4}, SMALL, 2),
        ({"nodes": 3}, SMALL, 2),
        ({"nodes": 3, "ray": {"placement": "pack"}}, SMALL, 8),
        ({"processes_per_node": 5}, SMALL, 0),
        ({"gpus_per_node": 4}, SMALL, 0),
        ({"nodes": 2, "gpus_per_node": 4, "ray": {"placement": "pack"}}, WITH_GPUS, 2),
        ({"gpus_per_node": 4}, [], 0),
    ],
)
def test_room(cluster: dict[str, object], machines: list[Machine], fits: int) -> None:
    assert room(ask(**cluster), machines) == fits


@pytest.mark.parametrize(
    ("cluster", "machines", "said"),
    [
        (
            {"nodes": 3, "processes_per_node": 2},
            SMALL,
            "asked for: 3 nodes with 2 CPUs each, each on a machine of its own. This Ray has: 10.0.0.1 with "
            "4 CPUs; 10.0.0.2 with 4 CPUs. That is room for 2. Ways out: add machines to this Ray, or set "
            "cluster.ray.placement=pack, which lets nodes share a machine, or set cluster.nodes=2.",
        ),
        (
            {"nodes": 2},
            SMALL,
            "asked for: 2 nodes with 1 CPU each, each on a machine of its own. This Ray has: 10.0.0.1 with 4 "
            "CPUs; 10.0.0.2 with 4 CPUs. That would do, but others use it: it starts when they are done.",
        ),
        (
            {"gpus_per_node": 1},
            SMALL[:1],
            "asked for: 1 node with 1 CPU and 1 GPU. This Ray has: 10.0.0.1 with 4 CPUs. That is room for 0. "
            "Ways out: add machines to this Ray, or set cluster.processes_per_node, cpus_per_process or "
            "gpus_per_node lower.",
        ),
        (
            {"gpus_per_node": 8},
            [],
            "asked for: 1 node with 1 CPU and 8 GPUs. This Ray has: no machine at all. That is room for 0. "
            "Ways out: add machines to this Ray.",
        ),
    ],
)
def test_shortage_in_plain_words(cluster: dict[str, object], machines: list[Machine], said: str) -> None:
    assert shortage(ask(**cluster), machines) == said


def test_never_enough_is_bad_input_and_all_else_another_try() -> None:
    assert exit_code_without_place(ask(nodes=3), SMALL, placed_before=False) == 2
    assert exit_code_without_place(ask(nodes=3), SMALL, placed_before=True) == 75
    assert exit_code_without_place(ask(nodes=2), SMALL, placed_before=False) == 75


def test_smaller_sizes_go_down_to_the_fewest() -> None:
    assert smaller_sizes(ask(nodes=4), SMALL, fewest=1) == [2, 1]
    assert smaller_sizes(ask(nodes=2), SMALL, fewest=1) == [1]
    assert smaller_sizes(ask(nodes=2), SMALL, fewest=2) == []
    assert smaller_sizes(ask(nodes=4), [], fewest=1) == []
