"""What comes after training on preferences: scores of runs, exports that other libraries load, templates."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml

from llmscale.checkpoint.store import inspect
from llmscale.commands.score import score
from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError
from llmscale.data.chat.encode import chat_encoder
from llmscale.data.records import record_source
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.run.deep_verify import plan_check
from llmscale.run.export import plan_export
from llmscale.run.reward_model import open_reward_model
from llmscale.run.score_records import RecordScorer, Scored, Tally
from llmscale.run.target import find_target
from tests.distributed.trainings import SECTIONS, Place, Run
from tests.run.reward_models import random_writer, write_pairs

LORA = ("peft.method=lora", "peft.rank=4")
TEMPLATE = """{% for m in messages -%}
{{ m.role }}: {{ m.content }}{{ "</s>" if m.role == "assistant" }}

{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("after")
    for name, count in (("train", 60), ("validation", 21)):
        write_pairs(folder / f"{name}.jsonl", count)
    (folder / "own.jinja").write_text(TEMPLATE)
    texts = ["how many in row user assistant one two three or more 0123456789: ?"] * 40
    train_tokenizer(texts, folder / "tokenizer", 380, "bpe", threads=1)
    config: dict[str, Any] = {
        **SECTIONS,
        "task": "reward",
        "run": {"root": str(folder / "runs")},
        "model": {"hidden_size": 32, "layers": 2, "heads": 4, "max_positions": 96},
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {name: [str(folder / f"{name}.jsonl")] for name in ("train", "validation")},
        "preferences": {"chat_template": str(folder / "own.jinja")},
    }
    config["train"] = SECTIONS["train"] | {
        "steps": 10,
        "global_batch_size": 4,
        "sequence_length": 96,
        "validate_every": 10,
        "validation_batches": 99,
        "init_from": str(folder / "base"),
    }
    config["optimizer"] = {"lr": 1e-2}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    made = Place(folder)
    random_writer(made.config, folder / "base")
    return made


@pytest.fixture(scope="module")
def reward(place: Place) -> Run:
    return place.uninterrupted("reward")


@pytest.fixture(scope="module")
def lora(place: Place) -> Run:
    return place.uninterrupted("lora", *LORA, "optimizer.lr=0.03")


@pytest.fixture(scope="module")
def prompt_tuning(place: Place) -> Run:
    """Virtual tokens stand before each answer's prompt."""
    return place.uninterrupted(
        "virtual", "peft.method=prompt_tuning", "peft.virtual_tokens=3", "optimizer.lr=0.1"
    )


def scored(place: Place, target: Path) -> tuple[list[Scored], Tally]:
    """The validation data."""
    found = find_target(str(target), place.folder / "runs", scores=True)
    chat, tally, told = chat_encoder(found.config, found.tokenizer, found.positions), Tally(), []
    with open_reward_model(found) as model:
        scorer = RecordScorer(model, chat, {}, found.positions, batch=5)
        for line, one in scorer.scored(record_source(place.folder / "validation.jsonl")):
            assert isinstance(one, Scored)
            tally.add(line, one)
            told.append(one)
    return told, tally


def scores(told: list[Scored]) -> torch.Tensor:
    return torch.tensor([one.scores for one in told])


@pytest.mark.parametrize("name", ["reward", "lora", pytest.param("prompt_tuning", marks=pytest.mark.soak)])
def test_scores_of_a_run_are_what_its_validation_has_measured(
    place: Place, name: str, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(name)
    metrics = run.events("validated")[-1].details["metrics"]
    told, tally = scored(place, run.folder)
    assert [one.line for one in told] == list(range(1, 22))
    assert tally.compared == 21 and scores(told).std() > 0.1
    assert tally.right / tally.compared == pytest.approx(metrics["accuracy"])
    assert tally.margin / tally.compared == pytest.approx(metrics["margin"], abs=1e-5)
    assert scores(told)[:, 0].mean().item() == pytest.approx(metrics["chosen_score"], abs=1e-5)


def test_an_export_scores_conversations_as_the_run_does(place: Place, reward: Run) -> None:
    out = exported(reward, place.folder / "exported")
    told = scored(place, reward.folder)[0]
    torch.testing.assert_close(scores(scored(place, out)[0]), scores(told), atol=1e-5, rtol=0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    torch.testing.assert_close(asked(model, out, place), scores(told), atol=1e-5, rtol=0)


def test_an_update_with_its_head_is_what_the_peft_library_loads(place: Place, lora: Run) -> None:
    told = scores(scored(place, lora.folder)[0])
    out = exported(lora, place.folder / "adapter")
    head = json.loads((out / "head.json").read_text())
    base = transformers.AutoModelForSequenceClassification.from_pretrained(place.folder / "base", **head)
    model = peft.PeftModel.from_pretrained(base, out).eval()
    torch.testing.assert_close(asked(model, out, place), told, atol=1e-5, rtol=0)
    merged = exported(lora, place.folder / "merged", merge=True)
    torch.testing.assert_close(scores(scored(place, merged)[0]), told, atol=1e-5, rtol=0)


def exported(run: Run, out: Path, merge: bool = False) -> Path:
    plan_export(str(run.folder), run.folder.parent, None, "fp32", merge).write(out, 10**9, lambda _: None)
    return out


def asked(model: Any, folder: Path, place: Place) -> torch.Tensor:
    """As a user of transformers would: by the folder's chat template, in one padded batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    records = [json.loads(line) for line in (place.folder / "validation.jsonl").open()]
    chats = [
        [{"role": "user", "content": record["instruction"]}, {"role": "assistant", "content": record[side]}]
        for record in records
        for side in ("chosen", "rejected")
    ]
    batch = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(**batch).logits.view(-1, 2)


def test_a_checkpoint_says_that_it_is_a_reward_model_and_computes_as_saved(reward: Run) -> None:
    found = inspect(reward.folder / "checkpoints" / "step-00000010")
    assert found.manifest is not None
    assert found.manifest.description["reward"] == {"loss": "bradley_terry"}
    assert found.manifest.description["classify"] == {"problem": "regression", "labels": []}
    check = plan_check(found.path, found.manifest, [], own_layout=False)
    assert not isinstance(check, str), check
    assert check.config.task == "reward" and check.faults() == []


def test_what_dpo_has_taught_is_asked_by_the_template_that_it_was_taught_by(place: Place) -> None:
    """In the samples of its validations, by `generate --chat`, and in its export."""
    options = ("train.generate.prompts=['How many in row 3?']", "train.generate.max_new_tokens=3")
    run = place.uninterrupted("dpo", "task=dpo", "train.steps=2", "train.validate_every=2", *options)
    assert run.events("validated")[-1].details["samples"][0]["prompt"] == "How many in row 3?"
    target = find_target(str(run.folder), run.folder.parent)
    encoder = chat_encoder(target.config, target.tokenizer, target.positions)
    assert encoder.template.source == TEMPLATE
    out = exported(run, place.folder / "exported-dpo")
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "How many in row 3?"}]
    text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "user: How many in row 3?\n\nassistant:"
    assert theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == encoder.prompt(chat)
    transformers.AutoModelForCausalLM.from_pretrained(out)
    assert read_resolved(run.folder / "config.yaml").sft.chat_template is None


def test_the_command_writes_scores_of_all_kinds_of_records(
    place: Place, reward: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under two ranks: compared, judged, waiting to be, and such that cannot be used."""
    said = "3"
    records = [
        {"question": "How many in row 3?", "chosen": said, "rejected": ["one", "two or more"]},
        {"question": "How many in row 3?", "completion": said, "label": True},
        {"question": "How many in row 3?", "completion": "one", "label": False},
        {"question": "How many in row 3?", "completion": said},
        {"question": "How many in row 3?", "responses": ["one", said], "ranks": [2, 1]},
        {"question": "How many in row 3?"},
        {"question": "How many? " * 60, "completion": said},
    ]
    file, out = place.folder / "some.jsonl", place.folder / "scores.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setenv("COLUMNS", "160")
    field = ["instruction=question"]
    score(str(reward.folder), file, output=out, field=field, batch=3, tensor=2, root=place.folder)
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["line"] for one in told] == [1, 2, 3, 4, 5]
    assert [[answer["role"] for answer in one["answers"]] for one in told] == [
        [0, 1, 1],
        [0],
        [0],
        [0],
        [0, 1],
    ]
    of_three = {one["answers"][0]["score"] for place, one in enumerate(told) if place != 2}
    assert max(of_three) - min(of_three) < 1e-5
    assert [one.get("label") for one in told] == [None, True, False, None, None]
    assert told[0]["prompt"] == [{"role": "user", "content": "How many in row 3?"}]
    printed = capsys.readouterr().out
    for shown in ("left out, bad", "(first line 6:", "left out, too long", "(first line 7:", "right answers"):
        assert shown in printed, shown
    before = out.read_bytes()
    for target, records_of, field, message in (
        (reward.folder, place.folder / "none.jsonl", None, "no such file"),
        (reward.folder, file, ["question"], "is no NAME=FIELD"),
        (place.folder / "base", file, None, "is no reward model"),
    ):
        with pytest.raises(InputError, match=message):
            score(str(target), records_of, output=out, field=field)
    assert out.read_bytes() == before
