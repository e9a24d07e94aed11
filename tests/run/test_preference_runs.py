"""Whole runs of `task: reward` and `task: dpo`: the same under every layout and with every kind of reference,
which is computed once and is the start."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmscale.config.problems import InputError
from llmscale.data.corpus import corpus_file
from llmscale.data.tokenizer import tokenizer_hash
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run, assert_same_run

STEPS = 4
WORDS = ["amber", "basil", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll"]

LAYOUTS: dict[str, tuple[str, ...]] = {
    "tensor 2": ("parallel.tensor=2", "parallel.sequence=true", "cluster.processes_per_node=2"),
    "pipeline 2": ("parallel.pipeline=2", "cluster.processes_per_node=2"),
    "tensor 2 pipeline 2": ("parallel.tensor=2", "parallel.pipeline=2", "cluster.processes_per_node=4"),
    "zero 2": ("zero.stage=2", "cluster.processes_per_node=2"),
    "zero 3": ("zero.stage=3", "cluster.processes_per_node=2"),
}
LORA = ("peft.method=lora", "peft.rank=4", "optimizer.lr=0.01")
TASKS: dict[str, tuple[str, ...]] = {
    "reward": ("task=reward",),
    "outcome": ("task=reward", "reward=outcome"),
    "reward lora": ("task=reward", *LORA),
    "dpo": ("task=dpo",),
    "dpo held": ("task=dpo", "dpo.reference=held", "dpo.sft_weight=0.3"),
    "dpo lora": ("task=dpo", "dpo.reference=adapter", *LORA),
    "simpo": ("task=dpo", "dpo=simpo"),
    "kto": ("task=dpo", "dpo=kto", "dpo.desirable_weight=1.2"),
}
QUICK = {
    ("reward", "tensor 2 pipeline 2"),
    ("reward lora", "zero 3"),
    ("dpo", "tensor 2"),
    ("dpo", "zero 2"),
    ("dpo held", "pipeline 2"),
    ("dpo lora", "zero 3"),
    ("kto", "tensor 2 pipeline 2"),
}
"""What `make test` runs; the rest is `make soak`."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run `base`, and preferences of words in the order of the alphabet over words in disorder."""
    made = Place.make(tmp_path_factory.mktemp("preferences"))
    train_tokenizer([" ".join(WORDS)] * 20, made.folder / "tokenizer", 380, "bpe", threads=1)
    file = corpus_file(made.folder / "corpus", ".json")
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"tokenizer_hash": tokenizer_hash(made.folder / "tokenizer")}))
    for name, seed in (("train", 1), ("validation", 2)):
        write_preferences(made.folder / f"{name}.jsonl", 90 if name == "train" else 20, seed)
        write_judged(made.folder / f"{name}-judged.jsonl", 90 if name == "train" else 20, seed)
    made.uninterrupted("base", "train.steps=4")
    return made


def write_preferences(path: Path, count: int, seed: int) -> None:
    """Of different lengths, some with two rejected answers."""
    draws = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            words = draws.sample(WORDS, draws.randint(2, 6))
            rejected = [" ".join(draws.sample(words, len(words))) for _ in range(1 + number % 2)]
            record = {
                "prompt": f"sort {' '.join(words)}",
                "chosen": " ".join(sorted(words)) + " .",
                "rejected": rejected,
            }
            file.write(json.dumps(record) + "\n")


def write_judged(path: Path, count: int, seed: int) -> None:
    draws = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            words = draws.sample(WORDS, draws.randint(2, 6))
            said = sorted(words) if number % 3 else draws.sample(words, len(words))
            record = {
                "prompt": f"sort {' '.join(words)}",
                "completion": " ".join(said),
                "label": said == sorted(words),
            }
            file.write(json.dumps(record) + "\n")


def overrides(place: Place, task: str) -> tuple[str, ...]:
    ending = "-judged" if task in ("outcome", "kto") else ""
    return (
        *TASKS[task],
        f"train.init_from={place.folder / 'runs' / 'base'}",
        f"tokenizer={place.folder / 'tokenizer'}",
        f"data.train=[{place.folder / f'train{ending}.jsonl'}]",
        f"data.validation=[{place.folder / f'validation{ending}.jsonl'}]",
        f"train.steps={STEPS}",
        "train.global_batch_size=4",
        "train.micro_batch_size=1",
        "train.sequence_length=96",
        "model.max_positions=96",
        # So that what differs is a mistake, and no rounding of a small gradient that Adam has made large.
        "optimizer.epsilon=0.01",
        f"train.validate_every={STEPS}",
        "checkpoint.every=2",
        "optimizer.warmup_steps=1",
    )


@pytest.fixture(scope="module")
def on_one_rank(place: Place) -> dict[str, Run]:
    """By the name of the task, each trained once."""
    return {}


def one_rank(place: Place, known: dict[str, Run], task: str) -> Run:
    if task not in known:
        known[task] = place.uninterrupted(f"{task} alone".replace(" ", "-"), *overrides(place, task))
    return known[task]


def cell(task: str, layout: str) -> Any:
    return pytest.param(task, layout, marks=[] if (task, layout) in QUICK else pytest.mark.soak)


@pytest.mark.parametrize(("task", "layout"), [cell(task, layout) for task in TASKS for layout in LAYOUTS])
def test_every_layout_gives_the_run_of_one_rank(
    place: Place, on_one_rank: dict[str, Run], task: str, layout: str
) -> None:
    oracle = one_rank(place, on_one_rank, task)
    run = place.uninterrupted(f"{task} {layout}".replace(" ", "-"), *overrides(place, task), *LAYOUTS[layout])
    compare(run, oracle)


def compare(run: Run, oracle: Run) -> None:
    """Steps and validations, with all metrics but the accuracy before the first step, where every difference
    is 0 but for its rounding."""
    found, expected = read_metrics(run.folder), read_metrics(oracle.folder)
    assert len(found) == len(expected) == STEPS
    for ours, theirs in zip(found, expected):
        close(ours, theirs, ("loss", "grad_norm", *told(theirs, is_first=ours["step"] == 1)))
    for ours, theirs in zip(run.events("validated"), oracle.events("validated"), strict=True):
        mine, its = ours.details["metrics"], theirs.details["metrics"]
        assert ours.details["loss"] == pytest.approx(theirs.details["loss"], rel=2e-6)
        close(mine, its, told(its, is_first=ours.step == 0))


def told(metrics: dict[str, Any], is_first: bool) -> list[str]:
    names = ("chosen_", "rejected_", "margin", "kl", "sft_loss", *(() if is_first else ("accuracy",)))
    return [name for name in metrics if name.startswith(names)]


def close(ours: dict[str, Any], theirs: dict[str, Any], names: Sequence[str]) -> None:
    assert {name: ours[name] for name in names} == pytest.approx(
        {name: theirs[name] for name in names}, rel=2e-5, abs=2e-5
    )


def references(run: Run) -> dict[str, np.ndarray]:
    return {
        path.name: np.load(path)["log_probabilities"]
        for path in sorted((run.folder / "data").glob("reference-*"))
    }


def test_references_of_all_kinds_are_the_same(place: Place) -> None:
    """With dropout, which the reference never has, and whose draws it must not change."""
    more = (*overrides(place, "dpo lora"), "model.dropout=0.1", "peft.dropout=0.1")
    off = place.uninterrupted("lora-off", *more)
    assert not references(off)
    for kind in ("precomputed", "held"):
        compare(place.uninterrupted(f"lora-{kind}", *more, f"dpo.reference={kind}"), off)


def test_another_start_has_references_of_its_own(place: Place) -> None:
    """Under the same name, before anything is trained."""
    name, more = "another-start", (*overrides(place, "dpo"), "train.stop_at=1", "checkpoint.resume=never")
    assert place.train(name, *more) == 0
    first = references(place.run(name))
    other = place.uninterrupted("other-base", "train.steps=3", "train.seed=9").folder
    assert place.train(name, *more, f"train.init_from={other}") == 0, place.run(name).rank_logs()
    both = references(place.run(name))
    assert len(first) == 2 and len(both) == 4 and first.keys() < both.keys()


def test_references_are_kept_and_damaged_ones_computed_anew(
    place: Place, on_one_rank: dict[str, Run]
) -> None:
    oracle = one_rank(place, on_one_rank, "dpo")
    name = "kept"
    run = place.run(name)
    assert place.train(name, *overrides(place, "dpo"), "train.stop_at=2") == 0
    before = references(run)
    assert sorted(key.rpartition("-")[0] for key in before) == ["reference-train-0", "reference-validation-0"]
    assert all(np.isfinite(values).all() for values in before.values())
    train, validation = sorted((run.folder / "data").glob("reference-*"))
    whole = train.read_bytes()
    train.write_bytes(
        whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 8]) + whole[len(whole) // 2 + 1 :]
    )
    written = validation.stat().st_mtime_ns
    assert place.train(name, *overrides(place, "dpo")) == 0
    assert_same_run(run, oracle)
    assert validation.stat().st_mtime_ns == written and "damaged" in run.rank_logs()
    for key, values in references(run).items():
        np.testing.assert_array_equal(values, before[key])


def test_what_is_stopped_while_references_are_computed_goes_on_there(
    place: Place, on_one_rank: dict[str, Run]
) -> None:
    """Some of the file's numbers are missing: rows without any of those are not computed again."""
    oracle = one_rank(place, on_one_rank, "dpo")
    name = "half"
    run = place.run(name)
    assert place.train(name, *overrides(place, "dpo"), "train.stop_at=1") == 0
    (train,) = (run.folder / "data").glob("reference-train-0-*")
    known = references(run)[train.name]
    known[40:] = np.nan
    known[:40] += 1e-9  # so that it shows which ones are computed again
    with train.open("wb") as file:
        np.savez(file, log_probabilities=known)
    assert place.train(name, *overrides(place, "dpo"), "train.stop_at=2") == 0
    after = references(run)[train.name]
    assert 5 < (after[:40] == known[:40]).sum() < 40
    np.testing.assert_allclose(after, references(oracle)[train.name], rtol=1e-6)
    referred = [event.details for event in run.events("referred") if event.details["data"] == "train-0"]
    assert 0 < referred[-2]["known"] < referred[-1]["known"] == len(known)


def test_a_reference_that_is_not_the_start_ends_the_run(place: Place) -> None:
    name = "other-reference"
    run = place.run(name)
    # The files come to be before the first step, and a run that has made none begins anew.
    assert place.train(name, *overrides(place, "dpo"), "train.steps=1", "checkpoint.every=null") == 0
    (path,) = (run.folder / "data").glob("reference-train-*")
    values = np.load(path)["log_probabilities"]
    with path.open("wb") as file:
        np.savez(file, log_probabilities=values + np.linspace(0, 2, len(values)))
    assert place.train(name, *overrides(place, "dpo"), "checkpoint.resume=never") == 1
    failed = run.events("failed")[-1].details["cause"]
    assert "not those of the weights that the run starts from" in failed and "reference-*.npz" in failed
    values[7] = -np.inf
    with path.open("wb") as file:
        np.savez(file, log_probabilities=values)
    assert place.train(name, *overrides(place, "dpo"), "checkpoint.resume=never") == 2
    assert "gives 1 of the" in run.rank_logs() and "not finite" in run.rank_logs()


def test_a_start_that_has_gone_on_is_not_mistaken_for_the_reference(
    place: Place, on_one_rank: dict[str, Run]
) -> None:
    """The run goes on with the checkpoint that it was begun from, and without it does not go on."""
    oracle = one_rank(place, on_one_rank, "dpo held")
    begun = place.folder / "runs" / "begun"
    shutil.copytree(place.folder / "runs" / "base", begun)
    more = (*overrides(place, "dpo held"), f"train.init_from={begun}")
    assert place.train("gone-on", *more, "train.stop_at=2") == 0
    assert place.train("begun", "train.steps=6", "checkpoint.keep_last=5", "checkpoint.every=1") == 0
    assert place.train("gone-on", *more, "train.stop_at=3") == 0
    shutil.rmtree(begun / "checkpoints" / "step-00000004")
    with pytest.raises(InputError, match="has not the weights that this run was begun from"):
        place.train("gone-on", *more)
    shutil.copytree(
        place.folder / "runs" / "base" / "checkpoints" / "step-00000004",
        begun / "checkpoints" / "step-00000004",
    )
    assert place.train("gone-on", *more) == 0
    assert_same_run(place.run("gone-on"), oracle)
