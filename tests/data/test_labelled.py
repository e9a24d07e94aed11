"""Records {text, label} as examples: the tokens of transformers, and what is left out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.encoding import Encoded, LeftOut
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import ExampleSet, write_examples
from llmscale.data.labelled import LabelledEncoder, record_encoder, sorted_labels, with_labels
from llmscale.data.row import batch_of
from llmscale.objectives.pooling import targets_of_texts

LENGTH = 24
SHORT = "def f(x):\n    return x\n"
LONG = SHORT * 20


def config_of(tokenizer: Path, train: Path | None = None, **classify: Any) -> Config:
    entries = [] if train is None else [{"path": train, "fields": {"text": "code", "label": "kind"}}]
    return Config.model_validate(
        {
            "task": "classify",
            "tokenizer": {"path": tokenizer},
            "classify": classify,
            "data": {"train": entries},
            "train": {"sequence_length": LENGTH},
        }
    )


def encoder_of(tokenizer: Path, **classify: Any) -> LabelledEncoder:
    return record_encoder(config_of(tokenizer, **classify))


def one(
    encoder: LabelledEncoder, fields: Mapping[str, str] | None = None, **record: Any
) -> Encoded | LeftOut:
    [found] = encoder.encode([record], fields or {})
    return found


@pytest.mark.parametrize("folder", ["bpe_folder", "bos_folder"])
def test_tokens_are_those_of_transformers(folder: str, request: pytest.FixtureRequest) -> None:
    """A BOS only where the tokenizer puts one, and no EOS of ours."""
    path = request.getfixturevalue(folder)
    reference = AutoTokenizer.from_pretrained(path)
    encoder = encoder_of(path, labels=["a", "b"])
    for text in (SHORT, LONG, "é ü 漢字 🙂", " leading\t"):
        found = one(encoder, text=text, label="b")
        assert isinstance(found, Encoded)
        expected = reference(text, truncation=True, max_length=LENGTH)["input_ids"]
        assert found.example.tokens[:-1].tolist() == expected
        assert found.example.learned.tolist() == [False] * len(expected) + [True]
        assert found.example.target == 1.0
        assert found.notes == (("truncated",) if text == LONG else ())


def test_what_looks_like_a_special_token_is_text(bpe_folder: Path) -> None:
    found = one(encoder_of(bpe_folder, labels=["a", "b"]), text="a</s>b<s>", label="a")
    assert isinstance(found, Encoded)
    assert not {1, 2} & set(found.example.tokens.tolist())


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": " \n", "label": "a"}, "empty"),
        ({"text": None, "label": "a"}, "bad"),
        ({"text": 3, "label": "a"}, "bad"),
        ({"text": "x", "label": "c"}, "bad"),
        ({"text": "x"}, "bad"),
        ({"text": "x", "label": True}, "bad"),
        ({"text": "x", "label": 1.5}, "bad"),
        ({"text": LONG, "label": "a"}, "too_long"),
    ],
)
def test_records_that_are_left_out(bpe_folder: Path, record: dict[str, Any], reason: str) -> None:
    found = one(encoder_of(bpe_folder, labels=["a", "b"], too_long="drop"), **record)
    assert isinstance(found, LeftOut)
    assert found.reason == reason


def test_one_bad_record_does_not_shift_the_others(bpe_folder: Path) -> None:
    encoder = encoder_of(bpe_folder, labels=["a", "b"])
    texts = ["x = 1", "", "y = 2"]
    found = encoder.encode([{"text": text, "label": "a"} for text in texts], {})
    alone = [one(encoder, text=text, label="a") for text in texts]
    for ours, expected in zip(found, alone, strict=True):
        assert type(ours) is type(expected)
        if isinstance(ours, Encoded) and isinstance(expected, Encoded):
            assert ours.example.tokens.tolist() == expected.example.tokens.tolist()


def test_targets_of_a_regression(bpe_folder: Path) -> None:
    encoder = encoder_of(bpe_folder, problem="regression")
    for value in (3, -2.5):
        found = one(encoder, {"label": "score"}, text="x", score=value)
        assert isinstance(found, Encoded)
        assert found.example.target == value
    for value in ("3", None, True, float("nan"), float("inf")):
        assert isinstance(one(encoder, {"label": "score"}, text="x", score=value), LeftOut)


def test_labels_come_from_the_training_data(bpe_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    kinds = ["b", "a", "b", None, 7.5]
    file.write_text("".join(json.dumps({"code": "x", "kind": kind}) + "\n" for kind in kinds) + "no JSON\n")
    assert with_labels(config_of(bpe_folder, file)).classify.labels == ["a", "b"]
    named = config_of(bpe_folder, file, labels=["z", "a", "b"])
    assert with_labels(named).classify.labels == ["z", "a", "b"]
    assert with_labels(config_of(bpe_folder, file, problem="regression")).classify.labels == []


def test_a_single_label_is_refused(bpe_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"code": "x", "kind": "a"}\n')
    with pytest.raises(InputError, match="takes two"):
        with_labels(config_of(bpe_folder, file))
    with pytest.raises(InputError, match="no such file"):
        with_labels(config_of(bpe_folder, tmp_path / "absent.jsonl"))


def test_order_of_labels() -> None:
    assert sorted_labels({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert sorted_labels({"b", "10", "9"}) == ["10", "9", "b"]


@pytest.mark.parametrize("packing", [False, True])
def test_rows_read_every_token_and_mark_the_last(bpe_folder: Path, tmp_path: Path, packing: bool) -> None:
    encoder = encoder_of(bpe_folder, labels=["a", "b"])
    records = [{"text": "x = 1" + " + 1" * extra, "label": "ab"[extra % 2]} for extra in range(5)]
    examples = [found.example for found in encoder.encode(records, {}) if isinstance(found, Encoded)]
    write_examples(examples, tmp_path / "set", dict)
    rows = ExampleRows(ExampleSet(tmp_path / "set"), LENGTH, "seed", 0, packing)
    read: list[tuple[list[int], float]] = []
    for places in rows.rows:
        batch = batch_of([rows.row(places)])
        last = batch.loss_mask_BS[0].nonzero()[:, 0].tolist()
        targets = targets_of_texts(batch).tolist()
        lengths = batch.position_ids_BS[0][last] + 1
        for end, length, target in zip(last, lengths.tolist(), targets, strict=True):
            read.append((batch.tokens_BS[0, end + 1 - length : end + 1].tolist(), target))
    expected = [(example.tokens[:-1].tolist(), example.target) for example in examples]
    assert sorted(read) == sorted(expected)
