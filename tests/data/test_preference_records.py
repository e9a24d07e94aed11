"""What records of preferences say: prompts, answers, which is better, and what is refused."""

from typing import Any

import pytest

from llmscale.data.chat.conversation import BadRecord
from llmscale.data.preferences.records import Answers, read_answers, read_judged

USER, TOOL = {"role": "user", "content": "Q"}, {"role": "tool", "content": "4"}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def compared(record: dict[str, Any], fields: dict[str, str] | None = None, margin: bool = False) -> Answers:
    return read_answers(record, fields or {}, margin)


def told(answers: Answers) -> list[tuple[Any, int, float]]:
    return [(answer.said, answer.role, answer.margin) for answer in answers.answers]


def test_texts() -> None:
    found = compared({"q": "Q", "chosen": "a", "rejected": ["b", "c"], "margin": [1, 2.5]}, {"prompt": "q"})
    assert found.prompt == "Q" and told(found) == [("a", 0, 0.0), ("b", 1, 1.0), ("c", 1, 2.5)]
    assert told(compared({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": 3}))[1] == ("b", 1, 3.0)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [USER], "chosen": [says("a")], "rejected": [says("b")]},
        {"prompt": [USER], "chosen": "a", "rejected": "b"},
        {"prompt": "Q", "chosen": [says("a")], "rejected": [says("b")]},
        {"instruction": "Q", "chosen": "a", "rejected": "b"},
        {"chosen": [USER, says("a")], "rejected": [USER, says("b")]},
        {"prompt": "Q", "chosen": [USER, says("a")], "rejected": [[USER, says("b")]]},
        {"chosen": [USER, says("a"), USER], "rejected": [USER, says("b")]},
    ],
)
def test_messages(record: dict[str, Any]) -> None:
    found = compared(record)
    assert found.prompt == (USER,) and told(found) == [((says("a"),), 0, 0.0), ((says("b"),), 1, 0.0)]


def test_an_answer_begins_where_an_assistant_speaks() -> None:
    call = {**says(""), "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    other = {**TOOL, "content": "5"}
    found = compared({"chosen": [USER, call, TOOL, says("a")], "rejected": [USER, call, other, says("a")]})
    assert found.prompt == (USER,) and [len(answer.said) for answer in found.answers] == [3, 3]
    # What is longer goes on where the other is at its end.
    found = compared(
        {"chosen": [USER, says("a")], "rejected": [USER, says("a"), USER, says("b")]},
    )
    assert found.prompt == (USER,) and [len(answer.said) for answer in found.answers] == [1, 3]


def test_texts_that_begin_alike() -> None:
    begin = "\n\nHuman: How?\n\nAssistant:"
    found = compared({"chosen": f"{begin} Thus and so", "rejected": f"{begin} There"})
    assert found.prompt == begin and [said for said, _, _ in told(found)] == [" Thus and so", " There"]
    found = compared({"chosen": "Q a", "rejected": "Q a b"})
    assert found.prompt == "Q" and [said for said, _, _ in told(found)] == [" a", " a b"]


def test_ranked_lists() -> None:
    record: dict[str, Any] = {"prompt": "Q", "responses": ["a", "b", "c", "d"]}
    assert [one[:2] for one in told(compared(record))] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    ranked = compared({**record, "ranks": [3, 1, 3, 2], "margin": [2, 9, 3, 1]})
    assert told(ranked) == [("b", 0, 0.0), ("d", 1, 1.0), ("a", 2, 2.0), ("c", 2, 3.0)]
    assert [one[:2] for one in told(compared({**record, "ranks": [1, 2, 1, 2]}))] == [
        ("a", 0),
        ("b", 1),
        ("d", 1),
    ]


def test_answers_that_are_judged_alone() -> None:
    for label, expected in ((True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0)):
        found = read_judged({"prompt": "Q", "completion": "a", "good": label}, {"label": "good"})
        assert (found.prompt, told(found), found.label) == ("Q", [("a", 0, 0.0)], expected)
    found = read_judged({"messages": [USER, says("x"), USER, says("a")], "label": True}, {})
    assert found.prompt == (USER, says("x"), USER) and told(found) == [((says("a"),), 0, 0.0)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Q", "chosen": "a"}, "has the fields prompt, chosen: neither chosen and rejected"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "has no prompt"),
        ({"chosen": "a b", "rejected": "c d"}, "do not begin alike"),
        ({"chosen": [USER, says("a")], "rejected": [TOOL, says("a")]}, "different prompts"),
        ({"prompt": "Q", "chosen": 3, "rejected": "b"}, "no list of messages"),
        ({"prompt": "Q", "chosen": "a", "rejected": 3}, "rejected is neither a text nor a list"),
        ({"prompt": "Q", "chosen": "a", "rejected": []}, "rejected is neither a text nor a list"),
        ({"prompt": [USER], "chosen": [USER], "rejected": "b"}, "no turn of an assistant"),
        ({"prompt": "Q", "responses": ["a", "b"], "ranks": [1]}, "ranks is no list of 2 numbers"),
        ({"prompt": "Q", "responses": ["a", "b"], "ranks": [1, "2"]}, "ranks is no list of 2 numbers"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": "1"}, "margin is neither a number"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": [1, 2]}, "nor a list of 1"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "reward.margin"),
    ],
)
def test_what_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        compared(record, margin=message == "reward.margin")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Q", "completion": "a"},
        {"prompt": "Q", "chosen": "a", "rejected": "b", "label": 1},
        {"prompt": "Q", "completion": "a", "label": "true"},
        {"prompt": "Q", "completion": "a", "label": 0.5},
    ],
)
def test_what_is_refused_of_answers_alone(record: dict[str, Any]) -> None:
    with pytest.raises(BadRecord, match="label"):
        read_judged(record, {})
