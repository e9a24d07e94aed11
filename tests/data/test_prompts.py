"""Prompts of records: what is asked, what is kept for judges, which are left out, and in which order."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.config.tuning import SftSection
from llmscale.data.chat.conversation import BadRecord
from llmscale.data.chat.encode import ChatEncoder
from llmscale.data.prompt_records import PromptReader, read_prompt
from llmscale.data.prompts import Prompts, open_prompts
from llmscale.data.record_checks import check_records
from llmscale.data.tokenizer import open_encoder

USER = {"role": "user", "content": "How?"}
ANSWER = {"role": "assistant", "content": "So."}


def reader_of(
    folder: Path, longest: int = 1000, as_text: bool = False, template: str = "chatml"
) -> PromptReader:
    return PromptReader(ChatEncoder(folder, SftSection(chat_template=template), 1000), longest, as_text)


def write(file: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def prompts_of(folder: Path, *files: Path, longest: int = 1000, seed: int = 1, **data: Any) -> Prompts:
    config = Config.model_validate(
        {"data": {"train": [str(file) for file in files], **data}, "train": {"seed": seed}}
    )
    return open_prompts(config, reader_of(folder, longest), "train")


def numbered(file: Path, count: int) -> Path:
    return write(file, [{"prompt": f"What is {number}?", "answer": number} for number in range(count)])


def numbers(prompts: Prompts, position: int, count: int) -> list[int]:
    return [prompt.fields["answer"] for prompt in prompts.at(position, count)]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "How?"}, "How?"),
        ({"question": "How?", "answer": "So."}, "How?"),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2"),
        ({"instruction": "Add.", "input": ""}, "Add."),
        ({"prompt": [USER]}, (USER,)),
        ({"prompt": [USER, ANSWER]}, (USER,)),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, (USER, ANSWER, USER)),
        ({"messages": [USER], "prompt": "Other"}, (USER,)),
    ],
)
def test_what_a_record_asks(record: dict[str, Any], said: Any) -> None:
    assert read_prompt(record, {}).said == said


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "How?"}, "has the fields text: none of messages, prompt"),
        ({"prompt": 3}, "prompt is no list of messages"),
        ({"question": 3}, "question is no text"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"messages": [ANSWER]}, "messages asks nothing"),
        ({"instruction": "a", "input": 3}, "instruction is no text"),
    ],
)
def test_what_asks_nothing(record: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRecord, match=words):
        read_prompt(record, {})


def test_other_fields_are_kept_and_fields_may_be_called_otherwise() -> None:
    record = {"q": "How?", "answer": "42", "level": {"a": [1]}, "prompt": "kept"}
    asked = read_prompt(record, {"question": "q", "prompt": "nowhere"})
    assert asked.said == "How?"
    assert asked.fields == {"answer": "42", "level": {"a": [1]}, "prompt": "kept"}


def test_tokens_ask_the_assistant_or_are_the_text_alone(chat_folder: Path, bos_folder: Path) -> None:
    encoder = open_encoder(chat_folder)
    prompt = reader_of(chat_folder).read({"prompt": "How?"}, {}, "x")
    asked = encoder.decode([*prompt.tokens], skip_special_tokens=False)
    assert asked == "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
    tools = reader_of(chat_folder).read({"prompt": [USER], "tools": [{"name": "add"}]}, {}, "x")
    assert "add" in encoder.decode([*tools.tokens], skip_special_tokens=False)
    text = reader_of(bos_folder, as_text=True).read({"prompt": "def f(<|im_end|>"}, {}, "x")
    [bos, *rest] = text.tokens
    assert bos == encoder.token_to_id("<s>")
    assert encoder.token_to_id("<|im_end|>") not in rest
    assert encoder.decode(rest, skip_special_tokens=False) == "def f(<|im_end|>"


def test_the_order_is_of_seed_and_position_alone(chat_folder: Path, tmp_path: Path) -> None:
    file = numbered(tmp_path / "a.jsonl", 12)
    whole = numbers(prompts_of(chat_folder, file, validation=[str(file)]), 0, 36)
    resumed = prompts_of(chat_folder, file, validation=[str(file)])
    assert numbers(resumed, 17, 10) == whole[17:27]
    assert numbers(resumed, 3, 5) == whole[3:8]  # back again, over an epoch's end
    epochs = [whole[start : start + 12] for start in (0, 12, 24)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(12)]] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert numbers(prompts_of(chat_folder, file, seed=2, validation=[str(file)]), 0, 36) != whole


def test_sources_are_blended_by_weight(chat_folder: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [{"prompt": f"a {number}", "answer": 1} for number in range(10)])
    two = write(tmp_path / "two.jsonl", [{"prompt": f"b {number}", "answer": 2} for number in range(10)])
    train = [{"path": str(one), "weight": 3}, {"path": str(two), "weight": 1}]
    config = Config.model_validate({"data": {"train": train, "validation": [str(one)]}})
    prompts = open_prompts(config, reader_of(chat_folder), "train")
    assert len(prompts) == 20
    assert numbers(prompts, 0, 40).count(1) == 30


def test_records_that_cannot_be_used_are_counted(chat_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    write(file, [{"prompt": "ok", "answer": 0}, {"prompt": "word " * 200}, {"text": "x"}])
    file.write_text(file.read_text() + "not json\n")
    prompts = prompts_of(chat_folder, file, longest=50, validation=[str(file)])
    assert numbers(prompts, 0, 2) == [0, 0]
    assert [prompt.record for prompt in prompts] == [f"{file}, line 1"]
    assert prompts.left_out == {"too_long": 1, "bad": 2}


def test_sources_without_prompts_are_refused_together(chat_folder: Path, tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", [{"prompt": "word " * 200}])
    with pytest.raises(InputError) as caught:
        prompts_of(chat_folder, long, tmp_path / "none.jsonl", longest=50, validation=[str(long)])
    first, second = caught.value.problems
    assert first.key == "data.train.0.path"
    assert "has no prompt for train that can be used: line 1 has" in first.message
    assert (second.key, second.message) == ("data.train.1.path", "no such file")
    with pytest.raises(InputError, match="names no prompts"):
        prompts_of(chat_folder)


def test_records_are_looked_at_before_anything_starts(chat_folder: Path, tmp_path: Path) -> None:
    good = numbered(tmp_path / "good.jsonl", 5)
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "a"}, {"text": "b"}, {"text": "c"}])
    tree = {"task": "rlhf", "tokenizer": str(chat_folder), "data": {"train": [str(good), str(bad)]}}
    [problem] = check_records(Config.model_validate(tree))
    assert problem.key == "data.train.1.path"
    assert problem.message.startswith("2 of the first 3 records cannot be used: line 2: has the fields text")


def test_a_prompt_is_on_one_side_of_the_split(chat_folder: Path, tmp_path: Path) -> None:
    """Every prompt stands there four times, in two spellings of a record."""
    records = [
        record
        for number in range(40)
        for record in [
            {"prompt": f"Say {number}", "answer": number},
            {"messages": [{"role": "user", "content": f"Say {number}"}], "answer": number},
        ]
        * 2
    ]
    file = write(tmp_path / "often.jsonl", records)
    config = Config.model_validate({"data": {"train": [str(file)], "split": [0.75, 0.25, 0.0]}})
    sides = [open_prompts(config, reader_of(chat_folder), side) for side in ("train", "validation")]
    first, second = ({prompt.fields["answer"] for prompt in side} for side in sides)
    assert (len(first), len(second), first & second) == (30, 10, set())
    assert [len(side) for side in sides] == [120, 40]


def test_the_content_changes_with_what_is_asked_or_judged_by(chat_folder: Path, tmp_path: Path) -> None:
    def content(record: dict[str, Any]) -> str:
        file = write(tmp_path / "one.jsonl", [record])
        return prompts_of(chat_folder, file, validation=[str(file)]).content

    same = content({"prompt": "a", "answer": 1, "x": 2})
    assert same == content({"x": 2, "answer": 1, "prompt": "a"})
    assert len({same, content({"prompt": "b", "answer": 1}), content({"prompt": "a", "answer": 2})}) == 3
