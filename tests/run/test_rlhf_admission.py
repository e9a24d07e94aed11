"""What stands against a run on rewards, told before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmscale.config.schema import Config
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.run.rlhf_admission import check_rlhf
from tests.rlhf.role_models import MODEL, ROW, VOCABULARY, make_models


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_models(tmp_path_factory.mktemp("admission"))
    train_tokenizer(["other words than those"] * 20, folder / "other", 370, "bpe", threads=1)
    with (folder / "prompts.jsonl").open("w") as prompts:
        prompts.write(
            json.dumps({"answer": 0}) + "\n"
        )  # asks nothing, and the ones behind it count all the same
        for number in range(5):
            prompts.write(json.dumps({"prompt": f"say {number}", "right": number}) + "\n")
    return folder


def problems(place: Path, **changes: Any) -> list[tuple[str, str]]:
    tree: dict[str, Any] = {
        "task": "rlhf",
        "model": MODEL | {"vocabulary_size": VOCABULARY},
        "tokenizer": {"path": place / changes.pop("tokenizer", "tokenizer")},
        "data": {"train": [{"path": place / "prompts.jsonl"}]},
        "train": {"sequence_length": ROW, "init_from": place / "writer"},
        "rlhf": {"rewards": ["model"], "roles": {"reward": {"init_from": place / "scorer"}}, **changes},
    }
    return [(problem.key, problem.message) for problem in check_rlhf(Config.model_validate(tree), {})]


def test_nothing_is_wrong(place: Path) -> None:
    assert problems(place) == []
    assert problems(place, rewards=[{"kind": "math", "answer": "right"}]) == []


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"rewards": [{"kind": "math"}]}, "rlhf.rewards.0.answer", "5 of the first 5 prompts have no single"),
        (
            {"rewards": [{"kind": "function", "function": "tests.rlhf.nowhere:f"}]},
            "rlhf.rewards.0.function",
            "cannot be used",
        ),
        ({"roles": {"reward": {"init_from": "no/run"}}}, "rlhf.roles.reward.init_from", "is not there"),
        ({"environment": {"environment": "tests.rlhf:Nothing"}}, "rlhf.environment.environment", "cannot"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told(place: Path, changes: dict[str, Any], key: str, message: str) -> None:
    [(found, told)] = problems(place, **changes)
    assert found == key and message in told


def test_a_model_that_writes_does_not_score(place: Path) -> None:
    [(key, told)] = problems(place, roles={"reward": {"init_from": place / "writer"}})
    assert key == "rlhf.roles.reward.init_from" and "no head" in told


def test_a_reward_model_of_another_tokenizer_is_asked_in_vain(place: Path) -> None:
    found = dict(problems(place, tokenizer="other"))
    assert "knows the tokens of another tokenizer" in found["rlhf.roles.reward.init_from"]


def test_a_critic_must_be_of_the_config_s_model(place: Path) -> None:
    critic = {"init_from": place / "scorer"}
    changed = Config.model_validate(
        {
            "task": "rlhf",
            "model": MODEL | {"vocabulary_size": VOCABULARY, "layers": 3},
            "tokenizer": {"path": place / "tokenizer"},
            "train": {"sequence_length": ROW, "init_from": place / "writer"},
            "rlhf": {"rewards": ["python"], "roles": {"critic": critic}},
        }
    )
    [problem] = check_rlhf(changed, {})
    assert problem.key == "model.layers" and "rlhf.roles.critic.init_from names" in problem.message
