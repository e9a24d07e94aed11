"""Whole runs of reinforcement learning on a real Ray: every placement of the models gives the same run, and a
run that is stopped goes on as if nothing had happened."""

import json
import random
from typing import Any

import pytest

from llmscale.data.corpus import corpus_file
from llmscale.data.tokenizer import tokenizer_hash
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run, assert_same_tensors

pytestmark = pytest.mark.cluster

STEPS = 3
WORDS = ["amber", "basil", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll"]
TOLD = ("loss", "reward_mean", "kl_answer", "answer_tokens", "entropy", "policy_loss")

APART = "{train: {roles: [actor], processes: 2}, reference: {roles: [reference]}, critic: {roles: [critic]}}"
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "apart": (f"rlhf.pools={APART}",),
    "actor with reference": (
        "rlhf.pools={train: {roles: [actor, reference], processes: 2}, critic: {roles: [critic]}}",
    ),
    "all on one": ("rlhf.pools={all: {roles: [actor, reference, critic], processes: 2}}",),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run `base`, prompts of words, and a reward for answers that use few different tokens."""
    made = Place.make(tmp_path_factory.mktemp("rlhf"))
    train_tokenizer([" ".join(WORDS)] * 20, made.folder / "tokenizer", 380, "bpe", threads=1)
    file = corpus_file(made.folder / "corpus", ".json")
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"tokenizer_hash": tokenizer_hash(made.folder / "tokenizer")}))
    draws = random.Random(5)
    with (made.folder / "prompts.jsonl").open("w") as prompts:
        for _ in range(60):
            words = " ".join(draws.sample(WORDS, draws.randint(1, 3)))
            prompts.write(json.dumps({"prompt": f"say {words}", "words": words}) + "\n")
    made.uninterrupted("base", "train.steps=4", "model.max_positions=64")
    return made


def overrides(place: Place, *more: str) -> tuple[str, ...]:
    return (
        "task=rlhf",
        f"train.init_from={place.folder / 'runs' / 'base'}",
        f"tokenizer={place.folder / 'tokenizer'}",
        f"data.train=[{place.folder / 'prompts.jsonl'}]",
        f"train.steps={STEPS}",
        "train.sequence_length=64",
        "model.max_positions=64",
        "train.micro_batch_size=2",
        "checkpoint.every=1",
        "checkpoint.keep_last=5",
        "optimizer.epsilon=0.01",
        "rlhf.rewards=[{kind: function, function: 'tests.rlhf.rewarding:short_words'}]",
        "rlhf.rollout={prompts: 4, answers: 2, max_new_tokens: 10, temperature: 1.0}",
        *more,
    )


def told(run: Run) -> list[dict[str, float]]:
    return [{name: line[name] for name in TOLD} for line in read_metrics(run.folder)]


def close(run: Run, oracle: Run) -> None:
    found, expected = told(run), told(oracle)
    assert len(found) == len(expected) == STEPS
    for ours, theirs in zip(found, expected):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def apart(place: Place) -> Run:
    return place.uninterrupted("apart", *overrides(place, "rlhf.update.minibatches=2", *PLACEMENTS["apart"]))


@pytest.mark.parametrize("placement", [name for name in PLACEMENTS if name != "apart"])
def test_every_placement_gives_the_same_run(place: Place, apart: Run, placement: str) -> None:
    name = placement.replace(" ", "-")
    run = place.uninterrupted(name, *overrides(place, "rlhf.update.minibatches=2", *PLACEMENTS[placement]))
    close(run, apart)


def test_the_first_step_is_of_the_policy_that_answered(apart: Run) -> None:
    first: dict[str, Any] = read_metrics(apart.folder)[0]
    assert first["first_ratio"] == 1.0 and first["first_kl_old"] == 0.0
    assert first["kl_answer"] == pytest.approx(0, abs=1e-4) and first["rollout_gap"] < 1e-4


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(place: Place, apart: Run) -> None:
    more = overrides(place, "rlhf.update.minibatches=2", *PLACEMENTS["apart"])
    assert place.train("stopped", *more, "train.stop_at=1") == 0
    run = place.uninterrupted("stopped", *more)
    assert told(run) == told(apart)
    assert_same_tensors(run.tensors(), apart.tensors())
    assert_same_tensors(Run(run.folder / "critic").tensors(), Run(apart.folder / "critic").tensors())
