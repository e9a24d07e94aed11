"""Rules about the machines that pools of reinforcement learning are to find."""

from typing import Any

import pytest

from llmscale.config.checks import check_config
from llmscale.config.schema import Config

INSIDE = {"kind": "ray", "ray": {"within": "slurm"}}
TWO_POOLS = {
    "train": {"roles": ["actor", "reference"], "processes": 4},
    "critic": {"roles": ["critic"], "processes": 2},
}


def problems(cluster: dict[str, Any], **pools: Any) -> dict[str, str]:
    sections = {
        "task": "rlhf",
        "model": {"vocabulary_size": 512},
        "data": {"train": ["prompts.jsonl"]},
        "train": {"init_from": "somewhere"},
        "rlhf": {"algorithm": "ppo", "rewards": [{"kind": "math"}], "pools": pools},
        "cluster": cluster,
    }
    return {problem.key: problem.message for problem in check_config(Config.model_validate(sections))}


@pytest.mark.parametrize("kind", [{"kind": "slurm"}, INSIDE])
def test_pools_fit_the_allocation(kind: dict[str, Any]) -> None:
    assert problems({**kind, "processes_per_node": 6}, **TWO_POOLS) == {}
    message = problems({**kind, "processes_per_node": 5}, **TWO_POOLS)["rlhf.pools"]
    assert "6 processes together (train 4, critic 2)" in message
    assert "1 × 5 = 5" in message and "cluster.processes_per_node=6" in message


def test_pools_on_several_nodes_of_slurm_have_a_ray() -> None:
    assert problems({**INSIDE, "nodes": 3, "processes_per_node": 2}, **TWO_POOLS) == {}
    message = problems({**INSIDE, "nodes": 4, "processes_per_node": 1}, **TWO_POOLS)["rlhf.pools"]
    assert "4 × 1 = 4" in message and "cluster.processes_per_node=2" in message
    found = problems({"kind": "slurm", "nodes": 3, "processes_per_node": 2}, **TWO_POOLS)
    assert list(found) == ["cluster.nodes"] and "cluster.ray.within=slurm" in found["cluster.nodes"]


def test_without_pools_all_roles_share_what_is_asked_for() -> None:
    assert problems({**INSIDE, "nodes": 2, "processes_per_node": 4}) == {}
    assert problems({"kind": "slurm", "processes_per_node": 4}) == {}


def test_a_ray_that_runs_already_is_asked_itself() -> None:
    assert problems({"kind": "ray", "ray": {"address": "http://head:8265"}}, **TWO_POOLS) == {}
    assert problems({"kind": "ray"}, **TWO_POOLS) == {}


def test_each_process_on_this_machine_has_a_gpu() -> None:
    assert problems({"gpus_per_node": 8}, **TWO_POOLS) == {}
    assert "cluster.gpus_per_node is 4" in problems({"gpus_per_node": 4}, **TWO_POOLS)["rlhf.pools"]


def test_pools_do_not_shrink() -> None:
    found = problems(
        {**INSIDE, "nodes": 2, "processes_per_node": 3, "elastic": {"min_nodes": 1}}, **TWO_POOLS
    )
    assert "pools keep their processes" in found["cluster.elastic"]
