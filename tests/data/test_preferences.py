"""Records of preferences as groups of documents: which tokens are the answer's, what is cut and left out."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llmscale.config.schema import Config
from llmscale.data.chat.template import TEMPLATES
from llmscale.data.checks import check_data
from llmscale.data.encoding import Encoded, LeftOut
from llmscale.data.examples import Example
from llmscale.data.preferences.encode import TRUNCATED, TWICE, PreferenceEncoder, record_encoder
from llmscale.data.records import record_source
from llmscale.data.split import records_of_split
from llmscale.data.tokenizer import open_encoder
from tests.data.conversations import answers, contents, conversations, pieces, reference

some = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
said = contents.map(lambda text: f"{text}!")
GOOD = {"prompt": "a", "chosen": " b", "rejected": " c"}
QUESTION = {"role": "user", "content": "How many?"}


def encoder_of(tokenizer: Path, row: int = 4096, **sections: Any) -> PreferenceEncoder:
    config = {
        "task": "dpo",
        "tokenizer": {"path": tokenizer},
        "train": {"sequence_length": row},
        **sections,
    }
    return record_encoder(Config.model_validate(config))


def one(
    encoder: PreferenceEncoder, record: Mapping[str, Any], fields: Mapping[str, str] | None = None
) -> Encoded | LeftOut:
    [found] = encoder.encode([record], fields or {})
    return found


def group(encoder: PreferenceEncoder, record: Mapping[str, Any]) -> Example:
    found = one(encoder, record)
    assert isinstance(found, Encoded), found
    return found.example


def documents(example: Example) -> list[tuple[list[int], list[bool]]]:
    """Tokens of each, and which are learned."""
    bounds = np.cumsum([0, *example.lengths])
    assert bounds[-1] == len(example.tokens) == len(example.learned)
    return [
        (example.tokens[start:stop].tolist(), example.learned[start:stop].tolist())
        for start, stop in zip(bounds, bounds[1:])
    ]


def template_encoder(folder: Path) -> Tokenizer:
    """Reads the names of special tokens as those tokens."""
    encoder = open_encoder(folder)
    encoder.encode_special_tokens = False
    return encoder


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@some
@given(record=conversations(), rejected=st.lists(said, min_size=1, max_size=3), template=st.data())
def test_the_answer_alone_is_learned(
    record: dict[str, Any], rejected: list[str], template: st.DataObject, chat_folder: Path
) -> None:
    """Of every turn that an assistant has, the compared one, told without our offsets."""
    name = template.draw(st.sampled_from(["plain", "chatml", "llama3", "zephyr"]))
    encoder = encoder_of(chat_folder, preferences={"chat_template": name})
    *prompt, chosen = record["messages"]
    if not prompt:
        prompt = [QUESTION]
    given_answers = [chosen, *map(says, rejected)]
    found = one(
        encoder,
        {"tools": record["tools"], "prompt": prompt, "chosen": [chosen], "rejected": rejected},
    )
    tokenizer, expected = template_encoder(chat_folder), []
    for answer in given_answers:
        whole = pieces(name, {**record, "messages": [*prompt, answer]})
        last = max(place for place, (_, learned) in enumerate(whole) if learned)
        written = [(text, learned and place == last) for place, (text, learned) in enumerate(whole)]
        told = reference(tokenizer, written, encoder.chat.stops)
        expected += [told] if told not in expected else []
    if len(expected) == 1:
        assert isinstance(found, LeftOut) and found.reason == "identical"
        return
    assert isinstance(found, Encoded) and documents(found.example) == expected
    assert [document.role for document in found.example.documents] == [0, *[1] * (len(expected) - 1)]


@some
@given(turns=st.lists(answers, min_size=1, max_size=3))
def test_an_answer_of_several_turns(turns: list[dict[str, Any]], chat_folder: Path) -> None:
    """Tools speak in it, and are not learned."""
    tool = {"role": "tool", "content": "42"}
    chosen = [turn for answer in turns for turn in (answer, tool)] + [says("yes.")]
    encoder = encoder_of(chat_folder, preferences={"chat_template": "chatml"})
    found = group(encoder, {"prompt": [QUESTION], "chosen": chosen, "rejected": "no."})
    whole = pieces("chatml", {"messages": [QUESTION, *chosen], "tools": None})
    assert documents(found)[0] == reference(template_encoder(chat_folder), whole, encoder.chat.stops)


def test_texts_are_tokenised_with_their_prompt(chat_folder: Path) -> None:
    """A token across the beginning is the answer's, and what ends an answer is learned once."""
    encoder, tokenizer = encoder_of(chat_folder), open_encoder(chat_folder)
    example = group(encoder, {"prompt": "def f(x):\n  ", "chosen": "  return x", "rejected": "  pass</s>"})
    for (tokens, learned), answer in zip(documents(example), ("  return x", "  pass</s>")):
        encoded = tokenizer.encode("def f(x):\n  ", add_special_tokens=False)
        assert tokenizer.decode(tokens) == f"def f(x):\n  {answer}" and tokens[-1] == encoder.chat.end_of_text
        first = learned.index(True)
        assert not any(learned[:first]) and all(learned[first:]) and first <= len(encoded.ids)


def test_bos_stands_before_each_document(bos_folder: Path) -> None:
    bos = open_encoder(bos_folder).token_to_id("<s>")
    assert bos is not None
    for record in (
        {"prompt": "a", "chosen": " b", "rejected": " c"},
        {"prompt": [QUESTION], "chosen": "b", "rejected": "c"},
    ):
        for tokens, _ in documents(group(encoder_of(bos_folder), record)):
            assert tokens[0] == bos and tokens.count(bos) == 1


def test_a_reward_is_told_after_the_last_token(chat_folder: Path) -> None:
    record = {"prompt": "a", "chosen": " b", "rejected": [" c", " d e"], "margin": [1, 2]}
    compared = documents(group(encoder_of(chat_folder), record))
    found = one(encoder_of(chat_folder, task="reward", reward={"margin": True}), record)
    assert isinstance(found, Encoded) and documents(found.visible) == compared
    for (tokens, learned), (whole, _) in zip(documents(found.example), compared, strict=True):
        assert tokens == [*whole, 0] and learned == [False] * len(whole) + [True]
    assert [document.margin for document in found.example.documents] == [0, 1, 2]


def test_answers_judged_alone(chat_folder: Path) -> None:
    record = {"prompt": "a", "completion": " b", "label": False}
    alone: list[dict[str, Any]] = [
        {"dpo": {"loss": "kto"}},
        {"task": "reward", "reward": {"loss": "outcome"}},
    ]
    for sections in alone:
        example = group(encoder_of(chat_folder, **sections), record)
        assert example.target == 0.0 and [document.role for document in example.documents] == [0]

    pair = {"prompt": "a", "chosen": " b", "rejected": " c"}
    refused = one(encoder_of(chat_folder, **alone[0]), pair)
    assert isinstance(refused, LeftOut) and refused.reason == "bad"
    both = group(encoder_of(chat_folder, **alone[1]), pair)
    assert both.target is None and [document.role for document in both.documents] == [0, 1]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "chosen": " b", "rejected": " b"}, "identical"),
        ({"prompt": "a", "responses": [" b", " b", " b"]}, "identical"),
        ({"prompt": "a", "responses": [" b", " c"], "ranks": [1, 1]}, "identical"),
        ({"prompt": "a", "responses": [" b"]}, "identical"),
        ({"prompt": "a", "chosen": " ", "rejected": " b"}, "empty"),
        ({"prompt": [QUESTION], "chosen": "a", "rejected": ["b", ""]}, "empty"),
        ({"prompt": "a", "chosen": " b"}, "bad"),
        ({"prompt": "a" * 99, "chosen": " b" * 99, "rejected": " c"}, "too_long"),
        ({"prompt": [QUESTION], "chosen": " b" * 99, "rejected": " c"}, "too_long"),
    ],
)
def test_records_that_are_left_out(record: dict[str, Any], reason: str, chat_folder: Path) -> None:
    """And those around them are not."""
    encoder, good = encoder_of(chat_folder, row=64), {"prompt": "a", "chosen": " b", "rejected": " c"}
    before, found, after = encoder.encode([good, record, good], {})
    assert isinstance(found, LeftOut) and found.reason == reason
    assert isinstance(before, Encoded) and isinstance(after, Encoded)
    assert before.example.tokens.tolist() == after.example.tokens.tolist()


@pytest.mark.parametrize(
    ("records", "sections", "key", "message"),
    [
        ([{"q": "a", "chosen": "b", "rejected": "c"}], {}, "data.train.0.path", "has no prompt"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], {}, "data.train.0.path", "answers are the same"),
        ([{"prompt": "a", "completion": "b"}], {"dpo": {"loss": "kto"}}, "data.train.0.path", "and label"),
        ([GOOD], {"preferences": {"chat_template": "chatlm"}}, "preferences.chat_template", "is none of"),
        ([GOOD, {}], {"data": {"validation": ["absent.jsonl"]}}, "data.validation.0.path", "no such file"),
    ],
)
def test_what_is_wrong_is_told_before_a_run(
    records: list[dict[str, Any]],
    sections: dict[str, Any],
    key: str,
    message: str,
    chat_folder: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = {"train": [str(file)], **sections.pop("data", {})}
    config = {"task": "dpo", "tokenizer": {"path": chat_folder}, "data": data, **sections}
    problems = check_data(Config.model_validate(config))
    assert [problem.key for problem in problems] == [key] and message in problems[0].message


def test_an_answer_that_is_there_twice_counts_once(chat_folder: Path) -> None:
    found = one(encoder_of(chat_folder), {"prompt": "a", "responses": [" b", " c", " b", " d"]})
    assert isinstance(found, Encoded) and found.notes == (TWICE,)
    assert [document.role for document in found.example.documents] == [0, 1, 3]


@pytest.mark.parametrize("sections", [{}, {"task": "reward"}, {"dpo": {"loss": "kto"}}])
def test_a_prompt_loses_its_oldest_turns(sections: dict[str, Any], chat_folder: Path) -> None:
    """As few as needed, whole; the system's stays, and so do the answers."""
    system, answer = {"role": "system", "content": "Be brief."}, "It is seven."
    talk = [turn for n in range(20) for turn in ({"role": "user", "content": f"Is it {n}?"}, says("No."))]
    last = {"role": "user", "content": "What is it?"}

    def record(kept: int) -> dict[str, Any]:
        prompt = [system, *talk[2 * (20 - kept) :], last]
        alone = {"prompt": prompt, "completion": answer, "label": True}
        return alone if sections.get("dpo") else {"prompt": prompt, "chosen": answer, "rejected": "Six."}

    generous = encoder_of(chat_folder, **sections)
    sizes = [_row_tokens(generous, group(generous, record(kept))) for kept in range(21)]
    assert sizes == sorted(sizes)
    for kept in (0, 3, 19):
        for spare in (0, sizes[kept + 1] - sizes[kept] - 1):
            found = one(encoder_of(chat_folder, row=sizes[kept] + spare, **sections), record(20))
            assert isinstance(found, Encoded) and found.notes == (TRUNCATED,)
            assert found.example.tokens.tolist() == group(generous, record(kept)).tokens.tolist()
    for tight in (
        encoder_of(chat_folder, row=sizes[0] - 1, **sections),
        encoder_of(chat_folder, row=sizes[20] - 1, preferences={"too_long": "drop"}, **sections),
    ):
        found = one(tight, record(20))
        assert isinstance(found, LeftOut) and found.reason == "too_long"


def _row_tokens(encoder: PreferenceEncoder, example: Example) -> int:
    """What a row needs to hold: with another's answer of one token at least, where that is added."""
    used = len(example.tokens) - len(example.documents)
    return used + int(np.argmax(example.learned)) if encoder.is_paired_up else used


def test_the_key_tells_apart_what_differs(chat_folder: Path, bos_folder: Path) -> None:
    encoders = [
        encoder_of(chat_folder),
        encoder_of(bos_folder),
        encoder_of(chat_folder, row=64),
        encoder_of(chat_folder, preferences={"chat_template": "chatml"}),
        encoder_of(chat_folder, preferences={"too_long": "drop"}),
        encoder_of(chat_folder, task="reward"),
        encoder_of(chat_folder, task="reward", reward={"margin": True}),
        encoder_of(chat_folder, task="reward", reward={"loss": "outcome"}),
        encoder_of(chat_folder, dpo={"loss": "kto"}),
        encoder_of(chat_folder, dpo={"loss": "kto"}, train={"seed": 1, "sequence_length": 4096}),
        encoder_of(chat_folder, peft={"method": "p_tuning"}),
    ]
    assert len({str(encoder.key) for encoder in encoders}) == len(encoders)
    same = encoder_of(chat_folder, dpo={"loss": "ipo", "beta": 2.0})
    assert same.key == encoders[0].key, "what the loss makes of it does not matter"


@pytest.mark.parametrize("name", ["plain", "chatml", "llama3", "zephyr"])
def test_a_template_without_marks_tells_the_same_answers(
    name: str, chat_folder: Path, tmp_path: Path
) -> None:
    """By what the text grows by; that the turns before an answer would be told otherwise does not matter."""
    source = (TEMPLATES / f"{name}.jinja").read_text()
    unmarked = tmp_path / f"{name}.jinja"
    unmarked.write_text(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))
    talk = [QUESTION, says("Four."), {"role": "user", "content": "And now?"}]
    record = {"prompt": talk, "chosen": "Five.", "rejected": ["Six.", "Six. Four."]}
    told = []
    for template in (name, str(unmarked)):
        encoder = encoder_of(chat_folder, preferences={"chat_template": template})
        assert encoder.chat.template.marks_answers == (template == name)
        texts = [
            template_encoder(chat_folder).decode(
                [token for token, one in zip(tokens, learned) if one], skip_special_tokens=False
            )
            for tokens, learned in documents(group(encoder, record))
        ]
        told.append(texts)
    assert told[0] == told[1] and ["Five" in text for text in told[0]] == [True, False, False]
    assert "Six. Four." in told[0][2]


@pytest.mark.parametrize("task", ["dpo", "reward"])
def test_the_answers_to_a_prompt_are_in_one_split(tmp_path: Path, chat_folder: Path, task: str) -> None:
    records = [GOOD | {"prompt": f"prompt {n % 12}", "chosen": f" right {n}"} for n in range(60)]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "no record\n")
    sections = {"data": {"train": [str(path)], "split": [0.75, 0.25, 0]}, "task": task}
    encoder = encoder_of(chat_folder, **sections)
    config = Config.model_validate({"task": task, "data": sections["data"]})
    (entry,), source = config.data.train, record_source(path)
    dealt = [
        set(records_of_split(config, encoder, source, entry, split)) for split in ("train", "validation")
    ]
    assert dealt[0].isdisjoint(dealt[1]) and len(dealt[0] | dealt[1]) == 61
    prompts = [{records[n]["prompt"] for n in numbers if n < 60} for numbers in dealt]
    assert prompts[0].isdisjoint(prompts[1]) and min(map(len, prompts)) >= 3


def test_a_tokenizer_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    config = {"task": "dpo", "tokenizer": {"path": tmp_path / "none"}, "data": {"train": [str(path)]}}
    (problem,) = check_data(Config.model_validate(config))
    assert problem.key == "tokenizer.path" and "is no folder" in problem.message
