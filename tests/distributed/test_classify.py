"""A head under every layout: the loss stream, the gradients and the weights of the single rank."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.run.export import plan_export
from llmscale.run.target import find_target
from tests.distributed.parity import TOLERANCES, Run, compare, parity_config, train
from tests.distributed.trainings import SECTIONS, Place, assert_same_run
from tests.distributed.trainings import Run as WholeRun

STEPS = 6
LABELS = {"labels": ["a", "b", "c"]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor 2": {"tensor": 2},
    "sequence parallel": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "zero 2": {"data": 2, "zero": 2},
    "zero 3": {"data": 2, "zero": 3},
}


def classifier(family: str = "llama", problem: str = "single_label", **options: Any) -> Config:
    tree = parity_config(family, **options).model_dump(exclude_unset=True)
    section = {"problem": problem} | (LABELS if problem == "single_label" else {})
    return Config.model_validate(tree | {"task": "classify", "classify": section})


@pytest.fixture(scope="module")
def alone() -> Run:
    return train(classifier(), steps=STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_one_rank_gives(layout: str, alone: Run) -> None:
    run = train(classifier(**LAYOUTS[layout]), steps=STEPS)
    compare(run, alone, TOLERANCES["fp32"])
    assert run.weights["score.weight"].shape == (3, 64)
    assert "lm_head.weight" not in run.weights


def test_regression_of_a_tied_model_with_biases_under_tensor_and_pipeline_parallelism() -> None:
    """gpt2's output is its embedding: without it the last stage has no copy."""
    expected = train(classifier("gpt2", "regression", tied=True), steps=STEPS)
    parallel = classifier("gpt2", "regression", tied=True, tensor=2, sequence=True, pipeline=2)
    compare(train(parallel, steps=STEPS), expected, TOLERANCES["fp32"])


WORDS = {
    "fruit": ("apple", "cherry", "plum"),
    "tool": ("hammer", "saw", "drill"),
    "bird": ("owl", "crow", "gull"),
}


def write_texts(path: Path, count: int, seed: int) -> None:
    """Sentences that a word gives away, of different lengths."""
    source = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            label = source.choice(list(WORDS))
            filler = [source.choice(("very", "old", "and", "red")) for _ in range(source.randrange(12))]
            words = [*filler, source.choice(WORDS[label])]
            source.shuffle(words)
            file.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("classify")
    texts = [" ".join((*words, "very old and red")) for words in WORDS.values()] * 40
    train_tokenizer(texts, folder / "tokenizer", 380, "bpe", threads=1)
    write_texts(folder / "train.jsonl", 256, 1)
    write_texts(folder / "validation.jsonl", 37, 2)
    config = {
        "task": "classify",
        "run": {"root": str(folder / "runs")},
        "model": SECTIONS["model"] | {"hidden_size": 32, "vocabulary_size": None},
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {
            "train": [{"path": str(folder / "train.jsonl")}],
            "validation": [{"path": str(folder / "validation.jsonl")}],
        },
        "train": SECTIONS["train"] | {"steps": 40, "sequence_length": 32, "validate_every": 20},
        "optimizer": {"lr": 1e-2, "warmup_steps": 3},
        "checkpoint": {"every": 20},
        "cluster": SECTIONS["cluster"],
        "logging": SECTIONS["logging"],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return Place(folder)


@pytest.fixture(scope="module")
def trained(place: Place) -> WholeRun:
    return place.uninterrupted("full")


def test_a_run_learns_and_transformers_tells_the_same_of_its_export(place: Place, trained: WholeRun) -> None:
    found = trained.events("validated")[-1].details
    assert found["metrics"]["accuracy"] > 0.9
    out = place.folder / "exported"
    export = plan_export(str(trained.folder), place.folder / "runs", None, "fp32")
    export.write(out, 1 << 30, lambda _: None)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(sorted(WORDS)))
    records = [json.loads(line) for line in (place.folder / "validation.jsonl").open()]
    batch = tokenizer([record["text"] for record in records], padding=True, return_tensors="pt")
    labels = torch.tensor([model.config.label2id[record["label"]] for record in records])
    with torch.no_grad():
        told = model(**batch, labels=labels)
    assert told.loss.item() == pytest.approx(found["loss"], abs=1e-5)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    counts.index_put_((labels, told.logits.argmax(-1)), torch.ones(len(labels), dtype=torch.int64), True)
    assert counts.tolist() == found["metrics"]["confusion"]


def test_a_stopped_run_goes_on_with_its_labels_and_no_others(place: Place, trained: WholeRun) -> None:
    assert place.train("stopped", "train.stop_at=20") == 0
    assert place.train("stopped", "train.stop_at=20", "classify.labels=[tool, bird, fruit]") == 2
    assert place.train("stopped") == 0
    assert_same_run(place.run("stopped"), trained)


def test_lora_on_pretrained_weights_trains_the_head_too(place: Place, trained: WholeRun) -> None:
    """The base's own head is not taken; the checkpoint has the update and the head."""
    base = f"train.init_from={trained.folder}"
    run = place.uninterrupted("lora", base, "peft=lora", "parallel.tensor=2", "cluster.processes_per_node=2")
    names = {name for name in run.tensors() if not name.startswith("optimizer.")}
    assert "score.weight" in names
    assert all("lora_" in name for name in names - {"score.weight"})
    assert run.events("validated")[-1].details["metrics"]["accuracy"] > 0.9
    first, last = run.tensors(20)["score.weight"], run.tensors()["score.weight"]
    assert not torch.equal(first, last)


def test_a_classifier_does_not_write(trained: WholeRun) -> None:
    with pytest.raises(InputError, match="cannot write"):
        find_target(str(trained.folder), trained.folder.parent)
