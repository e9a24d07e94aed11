"""Options of reinforcement learning: what they fall back on, and which do not go together."""

from typing import Any

import pytest

from llmscale.config.load import resolve
from llmscale.config.rlhf import OF_ALGORITHM, RlhfSection, UpdateSection
from llmscale.config.rlhf_checks import RULES
from llmscale.config.schema import Config

BAD: list[tuple[dict[str, Any], str, str]] = [
    (
        {"algorithm": "grpo", "update": {"gae_lambda": 0.9}},
        "update.gae_lambda",
        "read by rlhf.algorithm = grpo",
    ),
    ({"algorithm": "ppo", "update": {"scale": "none"}}, "update.scale", "but by grpo"),
    ({"algorithm": "rloo", "update": {"value_clip": None}}, "update.value_clip", "but by ppo"),
    ({"algorithm": "reinforce_plus_plus", "update": {"ratio": "product"}}, "update.ratio", "grpo, rloo"),
    ({"algorithm": "ppo", "update": {"baseline": "group"}}, "update.baseline", "reinforce_plus_plus"),
    ({"algorithm": "raft", "update": {"clip": 0.1}}, "update.clip", "raft"),
    ({"algorithm": "best_of_n", "kl": 0.5}, "kl.coefficient", "asks no reference"),
    ({"kl": {"penalty": "loss", "estimator": "k1"}}, "kl.estimator", "take k2"),
    ({"kl": {"weighted": True}}, "kl.weighted", "penalty=loss"),
    ({"kl": {"coefficient": 0, "target": 6}}, "kl.coefficient", "would stay so"),
    ({"kl": {"horizon": 5}}, "kl.horizon", "rlhf.kl.target"),
    ({"update": {"dual_clip": 1.1}}, "update.dual_clip", "above 1 + clip_high = 1.2"),
    ({"update": {"dual_clip": 1.25, "clip_high": 0.3}}, "update.dual_clip", "above 1 + clip_high = 1.3"),
    ({"overlong": {"buffer": 65}, "rollout": {"max_new_tokens": 64}}, "overlong.buffer", "longest answer"),
    ({"environment": "gues_number"}, "environment.environment", "none of guess_number"),
    ({"rewards": [{"kind": "math", "name": "mean"}]}, "rewards.0.name", "reward_mean"),
    (
        {"environment": "guess_number", "rewards": [{"kind": "math", "name": "environment"}]},
        "rewards.0.name",
        "reward_environment",
    ),
    ({"algorithm": "best_of_n", "async_steps": 1}, "async_steps", "best_of_n learns nothing"),
    ({"async_steps": 1, "rollout": {"importance_cap": None}}, "rollout.importance_cap", "such as 2"),
    (
        {"async_steps": 1, "rollout": {"engine": "transformers"}},
        "pools",
        "nothing would be written while they learn",
    ),
]
GOOD: list[Any] = [
    *OF_ALGORITHM,
    {"kl": {"penalty": "loss", "estimator": "k1", "weighted": True}},
    {"kl": {"penalty": "loss", "target": 6.0, "horizon": 100}},
    {"algorithm": "grpo", "update": {"scale": "none", "normalisation": "constant"}, "kl": 0},
    {"algorithm": "reinforce_plus_plus", "update": {"baseline": "group"}},
    {"update": {"dual_clip": 3, "clip_high": 0.28, "value_clip": None}},
    {"environment": {"environment": "guess_number", "turns": 3}, "overlong": {"buffer": 190}},
    {"algorithm": "raft", "async_steps": 1, "rollout": {"importance_cap": None}},
]


def problems_of(rlhf: Any) -> list[tuple[str, str]]:
    config = Config.model_validate({"rlhf": rlhf})
    return [(problem.key, problem.message) for rule in RULES for problem in rule(config)]


@pytest.mark.parametrize(("rlhf", "key", "message"), BAD, ids=str)
def test_what_does_not_go_together(rlhf: dict[str, Any], key: str, message: str) -> None:
    ((found, told),) = problems_of(rlhf)
    assert found == f"rlhf.{key}" and message in told


@pytest.mark.parametrize("rlhf", GOOD, ids=str)
def test_what_goes_together(rlhf: Any) -> None:
    assert problems_of(rlhf) == []


def test_all_is_told_at_once() -> None:
    several = {"update": {"scale": "none", "baseline": "group", "dual_clip": 1}, "kl": {"weighted": True}}
    keys = [key for key, _ in problems_of(several)]
    assert keys == ["rlhf.update.scale", "rlhf.update.baseline", "rlhf.kl.weighted", "rlhf.update.dual_clip"]


def test_every_key_is_read_by_an_algorithm() -> None:
    assert {key for keys in OF_ALGORITHM.values() for key in keys} == set(UpdateSection.model_fields)


def test_what_follows_from_what_is_left_out() -> None:
    def section(**tree: Any) -> RlhfSection:
        return RlhfSection.model_validate(tree)

    assert section().update.clip_high_or_default == 0.2
    assert section(kl={"penalty": "reward"}).kl.estimator_or_default == "k1"
    assert section(kl={"penalty": "loss"}).kl.estimator_or_default == "k2"
    assert [name for name in OF_ALGORITHM if section(algorithm=name).has_critic] == ["ppo"]
    assert [name for name in OF_ALGORITHM if section(algorithm=name).whitens_advantages] == ["ppo"]
    assert [name for name in OF_ALGORITHM if not section(algorithm=name).has_kl] == ["raft", "best_of_n"]
    assert not section(kl=0).has_kl
    compared = section(algorithm="reinforce_plus_plus", update={"baseline": "group"})
    assert compared.compares_groups and section(algorithm="grpo").compares_groups
    assert not section(algorithm="reinforce_plus_plus").compares_groups


PLACED: list[tuple[dict[str, Any], str, str]] = [
    ({"rlhf": {"pools": {"all": {"roles": ["actor"]}}}}, "rlhf.pools", "the reference, which this run needs"),
    (
        {"rlhf": {"pools": {"all": {"roles": ["actor", "reference", "critic"]}}}},
        "rlhf.pools.all.roles",
        "names the critic, which this run does not have",
    ),
    (
        {"rlhf": {"roles": {"actor": {"parallel": {"tensor": 3}}}}, "cluster": {"processes_per_node": 3}},
        "rlhf.roles.actor.parallel.tensor",
        "does not divide model.heads",
    ),
    (
        {"rlhf": {"roles": {"actor": {"parallel": {"tensor": 2}}}}},
        "rlhf.roles.actor.parallel",
        "does not divide the 1 processes of the pool all",
    ),
    (
        {
            "rlhf": {"roles": {"reference": {"parallel": {"pipeline": 2}, "zero_stage": 3}}},
            "cluster": {"processes_per_node": 2},
        },
        "rlhf.roles.reference.zero_stage",
        "pipeline",
    ),
    (
        {"rlhf": {"rollout": {"engine": "transformers"}}, "peft": {"method": "adapter"}},
        "rlhf.rollout.engine",
        "take native",
    ),
    ({"rlhf": {"async_steps": 1}}, "rlhf.async_steps", "rlhf.rollout.engine=transformers"),
    ({"rlhf": {"roles": {"actor": {"offload": True}}}}, "rlhf.roles.actor.offload", "leave it out"),
    ({"rlhf": {"rewards": []}}, "rlhf.rewards", "names no reward"),
    (
        {"rlhf": {"algorithm": "raft", "update": {"minibatches": 20}}},
        "rlhf.update.minibatches",
        "the 16 answers of a rollout that are learned from",
    ),
    ({"rlhf": {"rewards": ["model"]}}, "rlhf.roles.reward.init_from", "task=reward"),
    ({"rlhf": {"rollout": {"answers": 1}}}, "rlhf.rollout.answers", "take 2 or more"),
    ({"train": {"global_batch_size": 64}}, "train.global_batch_size", "rlhf.rollout.prompts"),
    ({"sft": {"chat_template": "chatml"}}, "sft.chat_template", "set rlhf.chat_template"),
    ({"zero": 3}, "zero", "rlhf.roles.ROLE.zero_stage"),
    ({"train": {"init_from": None}}, "train.init_from", "is needed"),
]


@pytest.mark.parametrize(("tree", "key", "message"), PLACED, ids=str)
def test_models_have_a_place_and_what_they_need(tree: dict[str, Any], key: str, message: str) -> None:
    whole: dict[str, Any] = {
        "task": "rlhf",
        "model": {"preset": "tiny"},
        "tokenizer": "tokenizer",
        "data": {"train": ["prompts.jsonl"]},
        **{name: section for name, section in tree.items() if name not in ("rlhf", "train")},
        "train": {"init_from": "runs/sft", **tree.get("train", {})},
        "rlhf": {"algorithm": "grpo", "rewards": ["python"], **tree.get("rlhf", {})},
    }
    config, problems = resolve(whole, "run")
    assert config is None or problems
    found = [(problem.key, problem.message) for problem in problems]
    assert any(name == key and message in told for name, told in found), found
    assert {name for name, _ in found} == {key}


def test_an_environment_is_a_reward_by_itself() -> None:
    tree = {
        "task": "rlhf",
        "model": {"preset": "tiny"},
        "tokenizer": "tokenizer",
        "data": {"train": ["prompts.jsonl"]},
        "train": {"init_from": "runs/sft"},
        "rlhf": {"algorithm": "grpo", "environment": "guess_number"},
    }
    assert resolve(tree, "run")[1] == []
