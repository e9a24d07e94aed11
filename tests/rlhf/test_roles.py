"""The models of a run as the ranks of their pools have them: the same experience teaches the same under every
layout, and what they tell is what transformers tells."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.parallel.environment import RankEnvironment
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.families import costs
from llmscale.rlhf.workers.dealing import deal
from llmscale.run.rlhf_roles import Actor, Trained, open_actor, open_critic, open_reference, open_reward
from tests.distributed.parity import _assemble
from tests.ranks import run_ranks
from tests.rlhf.role_models import MODEL, ROW, VOCABULARY, make_models

COUNT = 12
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor 2": (2, {"parallel": {"tensor": 2}}),
    "pipeline 2": (2, {"parallel": {"pipeline": 2}}),
    "zero 2": (2, {"zero_stage": 2}),
    "zero 3": (2, {"zero_stage": 3}),
}
SIGNALS = ("old", "reference", "rollout")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("roles"))


def config_of(place: Path, roles: dict[str, dict[str, Any]], layout: str = "", **more: Any) -> Config:
    """Of a run whose only pool has these roles, all under the same layout."""
    processes, section = LAYOUTS.get(layout, (1, {}))
    tree: dict[str, Any] = {
        "task": "rlhf",
        "run": {"root": str(place / "runs")},
        "model": MODEL | {"vocabulary_size": VOCABULARY},
        "tokenizer": {"path": place / "tokenizer"},
        "train": {"sequence_length": ROW, "precision": "fp32", "init_from": place / "writer"},
        "optimizer": {"lr": 1e-3, "epsilon": 1e-4},
        "cluster": {"threads": 1},
        "rlhf": {
            "algorithm": "ppo",
            "kl": {"penalty": "loss"},
            "update": {"entropy": 0.01},
            "rollout": {"max_new_tokens": 16},
            "roles": {role: section | own for role, own in roles.items()},
            "pools": {"own": {"roles": list(roles), "processes": processes}},
        },
        **more,
    }
    return Config.model_validate(tree)


def experiences(seed: int = 0) -> list[Experience]:
    """Answers of all lengths, with all that can be known of them."""
    draws = np.random.default_rng(seed)
    found: list[Experience] = []
    for number in range(COUNT):
        length = int(draws.integers(3, ROW + 1))
        tokens = draws.integers(0, VOCABULARY, length).astype(np.int32)
        learned = np.arange(length) >= draws.integers(1, length)
        floor = -np.log(VOCABULARY)
        signals = {f"{name}_log_probabilities": floor + 0.3 * draws.normal(size=length) for name in SIGNALS}
        signals |= {name: draws.normal(size=length) for name in ("advantages", "returns", "values")}
        exact = {name: signal.astype(np.float32) for name, signal in signals.items()}
        found.append(Experience(tokens, learned, number // 2, number % 2, 0, True, exact))
    return found


def taught(rank: int, role: str, config: Config) -> tuple[Any, ...]:
    """What a role says of experiences, two steps of learning from them, and its weights after those."""
    environment = RankEnvironment(rank, rank, config.rlhf.pools["own"].processes)
    opened: Trained = (open_actor if role == "actor" else open_critic)(
        environment, config.model_dump(mode="json")
    )
    opened.load(None)
    layout = opened.world.layout
    every = experiences()
    dealt = deal(costs(every), layout.data)
    mine = [every[place] for place in dealt[layout.coordinates(rank).data]]
    method = opened.log_probabilities if isinstance(opened, Actor) else opened.values  # type: ignore[attr-defined]
    told = method(mine)
    places = dealt[layout.coordinates(rank).data] if told is not None else []
    learn = (lambda: opened.learn(mine, 0.1)) if isinstance(opened, Actor) else (lambda: opened.update(mine))
    figures = [learn() for _ in range(2)]
    weights = [piece for piece in opened.engine.pieces_to_save() if not piece.name.startswith("optimizer.")]
    return dict(zip(places, told or ())), figures, weights


def outcome(role: str, config: Config) -> tuple[list[np.ndarray], list[dict[str, float]], dict[str, Tensor]]:
    ranks = run_ranks(config.rlhf.pools["own"].processes, taught, role, config)
    told = {place: one for rank in ranks for place, one in rank[0].items()}
    return [told[place] for place in range(COUNT)], ranks[0][1], _assemble(rank[2] for rank in ranks)


@cache
def alone(place: Path, role: str) -> tuple[Any, ...]:
    return outcome(role, config_of(place, {role: {}}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("role", ["actor", "critic"])
def test_the_same_experience_teaches_the_same_under_every_layout(place: Path, role: str, layout: str) -> None:
    told, figures, weights = outcome(role, config_of(place, {role: {}}, layout))
    expected_told, expected_figures, expected_weights = alone(place, role)
    for ours, theirs in zip(told, expected_told, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
    for ours, theirs in zip(figures, expected_figures, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-4, atol=2e-5, msg=name)


def references(rank: int, config: Config, lora: Config) -> tuple[list[np.ndarray], ...]:
    """What the start says, by a held reference and by a LoRA actor without its adapter that has learned."""
    environment, every = RankEnvironment(rank, rank, 1), experiences()
    held = open_reference(environment, config.model_dump(mode="json"))
    actor = open_actor(environment, lora.model_dump(mode="json"))
    actor.load(None)
    before = actor.log_probabilities(every)
    for _ in range(3):
        actor.learn(every, 0.0)
    after = actor.reference_log_probabilities(every), actor.log_probabilities(every)
    return held.reference_log_probabilities(every), before, *after


def test_the_reference_of_a_lora_actor_is_its_base(place: Path) -> None:
    lora = config_of(place, {"actor": {}}, peft={"method": "lora", "rank": 4})
    [told] = run_ranks(1, references, config_of(place, {"reference": {}}), lora)
    for held, before, after, learned in zip(*told, strict=True):
        assert before == pytest.approx(held, abs=1e-5)
        assert np.array_equal(before, after)
        assert np.abs(learned - after).max() > 1e-3


def scored(rank: int, role: str, config: Config) -> list[Any] | None:
    environment = RankEnvironment(rank, rank, config.rlhf.pools["own"].processes)
    every = experiences()
    if role == "reward":
        opened = open_reward(environment, config.model_dump(mode="json"))
        return opened.scores([one.tokens_T.tolist() for one in every])
    critic = open_critic(environment, config.model_dump(mode="json"))
    critic.load(None)
    return critic.values(every)


def scores_by_transformers(place: Path, texts: Sequence[np.ndarray]) -> list[float]:
    model = transformers.LlamaForSequenceClassification.from_pretrained(place / "scorer").eval()
    # Without padding, so that the last token is the one that counts, whatever it is.
    model.config.pad_token_id = None
    with torch.no_grad():
        return [float(model(torch.from_numpy(text.astype(np.int64))[None]).logits) for text in texts]


@pytest.mark.parametrize("layout", ["", "tensor 2", "pipeline 2"])
def test_a_reward_model_scores_as_transformers_does(place: Path, layout: str) -> None:
    config = config_of(place, {"reward": {"init_from": place / "scorer"}}, layout)
    found = run_ranks(config.rlhf.pools["own"].processes, scored, "reward", config)
    [told] = [one for one in found if one is not None]
    expected = scores_by_transformers(place, [one.tokens_T for one in experiences()])
    assert told == pytest.approx(expected, abs=2e-5)


def test_a_critic_knows_from_the_start_what_the_reward_model_knows(place: Path) -> None:
    """The value at a token is of what stands before it, so a text's last value is the score of all but its
    last token."""
    config = config_of(place, {"critic": {"init_from": place / "scorer"}})
    [values] = run_ranks(1, scored, "critic", config)
    expected = scores_by_transformers(place, [one.tokens_T[:-1] for one in experiences()])
    assert [one[-1] for one in values] == pytest.approx(expected, abs=2e-5)
