"""Whole runs on a real Ray of what the loop can do beside PPO: answers written ahead, conversations,
fine-tuning on the best answers, and keeping them."""

import json
from typing import Any

import pytest

from llmscale.rlhf.best_answers import FILE
from llmscale.rlhf.transaction import FOLDER
from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run, assert_same_tensors
from tests.rlhf.role_kills import Blow, striking
from tests.rlhf.word_runs import STEPS, make_place, overrides

pytestmark = pytest.mark.cluster

TIMES = ("seconds", "memory", "tokens_per_second", "mfu", "time")
ENDS = ("steps",)
"""Where the run was to stop."""
WRITERS = (
    "rlhf.pools={train: {roles: [actor]}, write: {roles: [rollout], processes: 2}}",
    "rlhf.rollout.engine=transformers",
)
AHEAD = ("rlhf.algorithm=grpo", "rlhf.kl.coefficient=0", "rlhf.async_steps=1", *WRITERS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("loops"))


def told(run: Run) -> list[dict[str, Any]]:
    """All that a run says of its steps, without times."""
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ENDS and not any(word in name for word in TIMES)
        }
        for line in read_metrics(run.folder)
    ]


@pytest.fixture(scope="module")
def ahead(place: Place) -> Run:
    return place.uninterrupted("ahead", *overrides(place, *AHEAD))


def assert_same(run: Run, oracle: Run) -> None:
    assert told(run) == told(oracle)
    assert_same_tensors(run.tensors(), oracle.tensors())


def test_a_run_that_writes_ahead_goes_on_as_if_nothing_had_happened(place: Place, ahead: Run) -> None:
    assert [line["staleness"] for line in told(ahead)] == [0, 1, 1]
    assert place.train("stopped", *overrides(place, *AHEAD, "train.stop_at=2")) == 0
    files = {path.name for path in (place.run("stopped").folder / FOLDER).iterdir()}
    names = [f"step-{step:08d}" for step in (1, 2)]
    assert files == {f"{name}.{kind}" for name in names for kind in ("json", "safetensors")}
    run = place.uninterrupted("stopped", *overrides(place, *AHEAD))
    assert_same(run, ahead)
    last = json.loads((run.folder / FOLDER / f"step-{STEPS:08d}.json").read_text())["state"]
    assert last["asked"] == last["prompts"] == 4 * STEPS and "replay" not in last


@pytest.mark.soak
def test_an_actor_that_dies_while_answers_are_written_costs_nothing(place: Place, ahead: Run) -> None:
    """Those that wait are in the transaction."""
    run = place.run("killed")
    with striking(run, Blow("train", 0, 1, "learning")):
        assert place.train("killed", *overrides(place, *AHEAD)) == 0, run.rank_logs()
    assert len(run.events("failed")) == 1
    assert_same(run, ahead)


def test_the_best_conversations_are_learned(place: Place) -> None:
    options = (
        "rlhf.algorithm=raft",
        "rlhf.environment={environment: 'tests.rlhf.rewarding:Again', turns: 2}",
        "rlhf.chat_template=plain",
        "rlhf.rewards=[]",
        "train.steps=2",
    )
    run = place.uninterrupted("raft", *overrides(place), *options)
    first, second = told(run)
    assert first["reward_mean"] == pytest.approx(first["reward_environment"])
    assert first["reward_best"] > first["reward_mean"] and first["unrewarded_share"] == 0
    assert 10 < first["answer_tokens"] <= 20  # two turns of at most ten
    assert second["loss"] != first["loss"] and "kl_answer" not in first


def test_the_best_answers_are_kept_each_once(place: Place) -> None:
    options = (
        "rlhf.algorithm=best_of_n",
        "rlhf.rollout={prompts: 24, answers: 4, max_new_tokens: 10}",
        "train.steps=9",
        "train.validate_every=2",
        "data.split=[0.9, 0.1, 0]",
    )
    oracle = place.uninterrupted("best", *overrides(place), *options)
    lines = [json.loads(line) for line in (oracle.folder / FILE).open()]
    prompts = [json.loads(line)["prompt"] for line in (place.folder / "prompts.jsonl").open()]
    asked = [line["prompt"] for line in lines]
    assert len(set(zip(asked, range(len(asked))))) == len(asked) and set(asked) <= set(prompts)
    assert all(line["reward"] >= line["reward_mean"] for line in lines)
    assert not oracle.committed_steps()
    assert place.train("halved", *overrides(place), *options, "train.stop_at=1") == 0
    halved = place.uninterrupted("halved", *overrides(place), *options)
    assert (halved.folder / FILE).read_text() == (oracle.folder / FILE).read_text()
    assert told(halved) == told(oracle)
