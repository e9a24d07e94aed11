"""Whole runs that begin from another one's weights: what is validated, kept and resumed; when they end."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from llmscale.commands.checkpoint import app
from llmscale.config.problems import InputError
from llmscale.data.corpus import corpus_file
from llmscale.data.tokenizer import tokenizer_hash
from llmscale.data.train_tokenizer import train_tokenizer
from tests.data.corpora import write_corpus
from tests.distributed.trainings import DP2, Place, Run, assert_same_run

VALIDATED = ("loss", "perplexity", "metrics", "forgetting", "samples")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run `base` that knows a corpus, and another corpus beside it that counts backwards."""
    made = Place.make(tmp_path_factory.mktemp("tuned"))
    texts = [f"the {number} words of one small text" for number in range(200)]
    train_tokenizer(texts, made.folder / "tokenizer", 380, "bpe", threads=1)
    backwards = corpus_file(write_corpus(made.folder / "other", seed=4), ".bin")
    backwards.write_bytes(np.fromfile(backwards, np.uint16)[::-1].tobytes())
    for name in ("corpus", "other"):
        file = corpus_file(made.folder / name, ".json")
        info = json.loads(file.read_text())
        file.write_text(json.dumps(info | {"tokenizer_hash": tokenizer_hash(made.folder / "tokenizer")}))
    made.uninterrupted(
        "base", "optimizer.lr=0.01", f"data.train=[{made.folder / 'corpus'}]", "train.steps=40"
    )
    return made


def overrides(place: Place, *more: str) -> tuple[str, ...]:
    known = place.folder / "corpus"
    return (
        f"train.init_from={place.folder / 'runs' / 'base'}",
        f"data.train=[{place.folder / 'other'}]",
        f"data.forgetting=[{known}]",
        f"tokenizer={place.folder / 'tokenizer'}",
        "data.split=[0.8,0.2,0.0]",
        "train.generate={prompts: [the, 'of one small'], max_new_tokens: 6}",
        "train.validate_every=2",
        "train.validation_batches=3",
        "checkpoint.every=null",
        "optimizer.distance_penalty=0.5",
        *more,
    )


def stopping(place: Place) -> tuple[str, ...]:
    """Validated on what is forgotten: the loss only grows, so the weights of the start are the best."""
    return overrides(
        place,
        f"data.validation=[{place.folder / 'corpus'}]",
        "train.early_stopping={patience: 3}",
        "checkpoint.keep_best=true",
        "checkpoint.keep_last=1",
        "optimizer.lr=0.01",
    )


def validations(run: Run) -> dict[int | None, dict[str, Any]]:
    return {
        event.step: {key: event.details.get(key) for key in VALIDATED} for event in run.events("validated")
    }


def progress(run: Run, step: int) -> dict[str, Any]:
    manifest = run.folder / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    return json.loads(manifest.read_text())["progress"]


@pytest.fixture(scope="module")
def stopped(place: Place) -> Iterator[Run]:
    yield place.uninterrupted("stopped", *stopping(place))


def test_a_run_that_gets_no_better_ends(place: Place, stopped: Run) -> None:
    losses = {step: found["loss"] for step, found in validations(stopped).items()}
    assert list(losses) == [0, 2, 4, 6]
    assert min(losses.values()) == losses[0]
    (event,) = stopped.events("stopped_early")
    assert event.step == 6 and "3 validations in a row" in event.details["cause"]
    assert stopped.events("finished") and not stopped.events("preempted")
    assert stopped.last_step() == 6
    before = stopped.stream()
    assert place.train("stopped", *stopping(place)) == 0, "it is complete: nothing is left to do"
    assert stopped.stream() == before and stopped.committed_steps() == [0, 6]


def test_the_best_checkpoint_stays(stopped: Run) -> None:
    assert stopped.committed_steps() == [0, 6], "of the others only the newest is kept"
    assert progress(stopped, 6)["best"]["step"] == 0
    listed = CliRunner().invoke(app, ["list", str(stopped.folder)]).output.splitlines()
    assert [line.split()[0] for line in listed if "best" in line] == ["0"]


def test_forgetting_is_told_from_the_start_on(stopped: Run) -> None:
    found = [validation["forgetting"] for validation in validations(stopped).values()]
    assert found[0]["score"] == 0
    for later in found[1:]:
        assert later["score"] == later["loss"] - found[0]["loss"] > 0


@pytest.mark.parametrize(
    "stops", [("3", "null"), pytest.param(("1", "4", "5", "null"), marks=pytest.mark.soak)]
)
def test_resumed_in_the_middle(place: Place, stopped: Run, stops: tuple[str, ...]) -> None:
    """Patience, best loss, starting weights and the score's reference point go on as they were."""
    name = "-".join(("resumed", *stops))
    for stop in stops:
        assert place.train(name, *stopping(place), f"train.stop_at={stop}") == 0
    run = place.run(name)
    assert_same_run(run, stopped)
    assert any(tensor.startswith("optimizer.start.") for tensor in run.tensors())
    assert validations(run) == validations(stopped)
    assert progress(run, 6)["best"] == progress(stopped, 6)["best"]
    assert run.committed_steps()[0] == 0 and run.committed_steps()[-1] == 6


LAYOUTS = {
    "pipeline 2": ("parallel.pipeline=2", "cluster.processes_per_node=2"),
    "tensor 2": ("parallel.tensor=2", "cluster.processes_per_node=2"),
    "data 2, ZeRO-3": (*DP2, "zero.stage=3"),
}
LEARNING = ("train.steps=4", "checkpoint.keep_best=true", "optimizer.layer_decay=0.8")


@pytest.fixture(scope="module")
def single(place: Place) -> Run:
    return place.uninterrupted("single", *overrides(place, *LEARNING))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_validates_the_same(place: Place, single: Run, layout: str) -> None:
    run = place.uninterrupted(
        f"in-{layout}".replace(", ", "-").replace(" ", "-"), *overrides(place, *LEARNING), *LAYOUTS[layout]
    )
    expected, found = validations(single), validations(run)
    assert list(found) == [0, 2, 4]
    for step, validation in found.items():
        assert validation["samples"] == expected[step]["samples"]
        assert validation["loss"] == pytest.approx(expected[step]["loss"], rel=2e-6)
        assert validation["forgetting"]["loss"] == pytest.approx(
            expected[step]["forgetting"]["loss"], rel=2e-6
        )
    for line, reference in zip(run.stream(), single.stream(), strict=True):
        assert line == pytest.approx(reference, rel=1e-5)
    assert run.committed_steps() == [2, 4], "each validation was better, and two are kept"


def test_another_layout_goes_on(place: Place, single: Run) -> None:
    """The starting weights are handed on with the moments."""
    first = overrides(place, *LEARNING)
    assert place.train("moved", *first, "train.stop_at=2") == 0
    assert place.train("moved", *first, *LAYOUTS["data 2, ZeRO-3"]) == 0
    run = place.run("moved")
    for name, tensor in single.tensors().items():
        apart = (run.tensors()[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-12)
        assert apart == 0 if name.startswith("optimizer.start.") else apart < 1e-3, (name, apart)


def test_a_penalty_does_not_come_or_go(place: Place, single: Run) -> None:
    with pytest.raises(InputError, match=r"optimizer\.distance_penalty"):
        place.train(single.folder.name, *overrides(place, *LEARNING), "optimizer.distance_penalty=0")


def test_impossible_prompts_are_named(place: Place) -> None:
    assert place.train("mute", *overrides(place), "train.generate.prompts=['']") == 2
