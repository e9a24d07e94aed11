"""What a process of each pool needs: what its roles hold adds up, their turns do not."""

from typing import Any

import pytest

from llmscale.config.rlhf_roles import role_config
from llmscale.config.schema import Config
from llmscale.plan.devices import Device
from llmscale.plan.memory import rank_memory
from llmscale.plan.parameters import stage_parameters
from llmscale.plan.rlhf import PoolMemory, pool_memories
from llmscale.plan.rlhf_neighbours import too_large, what_fits_pools

VOCABULARY = 8192


def config(pools: dict[str, Any] | None = None, **rlhf: Any) -> Config:
    section = {
        "algorithm": "ppo",
        "rewards": [{"kind": "model"}],
        "roles": {"reward": {"init_from": "elsewhere"}},
        "pools": pools or {},
        **rlhf,
    }
    return Config.model_validate(
        {
            "task": "rlhf",
            "model": {"preset": "tiny", "vocabulary_size": VOCABULARY},
            "data": {"train": ["prompts.jsonl"]},
            "train": {"init_from": "somewhere", "sequence_length": 256, "micro_batch_size": 4},
            "cluster": {"processes_per_node": 2},
            "rlhf": section,
        }
    )


APART = {role: {"roles": [role], "processes": 2} for role in ("actor", "reference", "critic", "reward")}


def by_name(found: Config) -> dict[str, PoolMemory]:
    return {memory.name: memory for memory in pool_memories(found, VOCABULARY)}


def bytes_of_weights(found: Config) -> int:
    """Of a whole model that writes, in bf16."""
    return 2 * stage_parameters(found.model, VOCABULARY, 256, tensor=1, pipeline=1, stage=0).total


def test_a_pool_holds_what_its_roles_hold_and_the_largest_turn() -> None:
    apart, together = by_name(config(APART)), by_name(config())["all"]
    held = {name: memory.total - memory.roles[memory.fullest].turn for name, memory in apart.items()}
    turns = [memory.roles[memory.fullest].turn for memory in apart.values()]
    assert together.total == sum(held.values()) + max(turns)
    assert held["reference"] == bytes_of_weights(config())


def test_who_learns_is_planned_as_a_run_of_its_own() -> None:
    found = config(APART)
    memory = rank_memory(role_config(found, "critic"), VOCABULARY, 0)
    held = by_name(found)["critic"].roles["critic"].held
    assert held == {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "buffers": memory.buffers,
    }


def test_keys_and_values_of_a_rollout_count_when_they_are_more_than_a_step() -> None:
    few = config(APART, rollout={"prompts": 2, "answers": 2, "batch": 1})
    many = config(APART, rollout={"prompts": 512, "answers": 4, "batch": 1024})
    (small,), (large,) = (by_name(one)["actor"].roles.values() for one in (few, many))
    assert "activations" in small.in_turn
    model = many.model
    key_and_value = 2 * model.kv_heads_or_default * model.head_size_or_default * model.layers
    # 2,048 answers over two replicas, all at once, in bf16.
    assert large.in_turn == {"keys and values of a rollout": 1024 * 256 * key_and_value * 2}


def test_weights_at_rest_are_there_in_their_turn_only() -> None:
    resting = {"reward": {"init_from": "elsewhere"}, "reference": {"offload": True}}
    here, away = by_name(config(APART))["reference"], by_name(config(APART, roles=resting))["reference"]
    assert away.roles["reference"].held == {}
    assert away.total == here.total
    both = {"all": {"roles": ["actor", "reference", "critic", "reward"], "processes": 2}}
    kept, rested = by_name(config(both))["all"], by_name(config(both, roles=resting))["all"]
    assert kept.total - rested.total == bytes_of_weights(config())


@pytest.mark.parametrize("pools", [None, APART])
def test_what_would_fit_does_fit(pools: dict[str, Any] | None) -> None:
    found = config(pools)
    largest = max(memory.total for memory in pool_memories(found, VOCABULARY))
    device = Device("small", largest * 2 // 3, None)
    messages = list(too_large(found, VOCABULARY, device))
    assert messages and all("needs" in message for message in messages)
    ways = what_fits_pools(found, VOCABULARY, device.memory)
    assert 0 < len(ways) <= 3
