"""A run that goes by epochs, on records of which some cannot be used: how long it is, and what it tells."""

import json
from pathlib import Path

import pytest

from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.report.gather import gather, summary
from llmscale.run.standing import read_status
from llmscale.runtime.describe import describe_event
from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run

RECORDS, ROWS_A_STEP = 30, 4
STEPS = 15
"""Two passes over them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place.make(tmp_path_factory.mktemp("epochs"))
    texts = [f"the {number} words of one small text" for number in range(200)]
    train_tokenizer(texts, made.folder / "tokenizer", 380, "bpe", threads=1)
    write_records(made, ["", "the words " * 100])
    return made


def write_records(place: Place, others: list[str]) -> None:
    texts = [*(f"the {number} words" for number in range(RECORDS)), *others]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (place.folder / "records.jsonl").write_text("".join(lines))


def overrides(folder: Path, *more: str) -> tuple[str, ...]:
    return (
        "task=sft",
        "sft.packing=false",
        "sft.too_long=drop",
        f"data.train=[{folder / 'records.jsonl'}]",
        "data.split=[1,0,0]",
        f"tokenizer={folder / 'tokenizer'}",
        "train.epochs=2",
        f"train.global_batch_size={ROWS_A_STEP}",
        "logging.every=4",
        "checkpoint.every=null",
        *more,
    )


def written_steps(run: Run) -> list[int]:
    return [line["step"] for line in read_metrics(run.folder)]


def test_epochs_are_steps_everywhere(place: Place) -> None:
    options = overrides(place.folder)
    assert place.train("one", *options, "train.stop_at=6") == 0
    run = place.run("one")
    assert written_steps(run) == [4, 6]
    assert dict(summary(gather(run.folder)))["steps"] == "6 of 6"
    assert place.train("one", *options) == 0
    assert written_steps(run) == [4, 6, 8, 12, STEPS]
    assert dict(summary(gather(run.folder)))["steps"] == f"{STEPS} of {STEPS}"
    found = read_status(run.folder)
    assert (found.state, found.step, found.steps) == ("done", STEPS, STEPS)


def test_what_became_of_the_records_is_told_once(place: Place) -> None:
    """And once more where they have changed."""
    options = overrides(place.folder)
    for stop in (1, 2):
        assert place.train("told", *options, f"train.stop_at={stop}") == 0
    (event,) = place.run("told").events("prepared")
    assert event.details["parts"]["train-0"]["left_out"] == {
        "bad": 0,
        "empty": 1,
        "too_long": 1,
        "nothing_learned": 0,
        "identical": 0,
    }
    told = describe_event(event.kind, event.step, event.details)
    assert told == "data: train-0: 30 examples of 32 records; left out 1 empty, 1 too long"
    write_records(place, [""])
    assert place.train("told", *options, "train.stop_at=3") == 0
    first, second = place.run("told").events("prepared")
    assert first == event and second.details["parts"]["train-0"]["records"] == 31
