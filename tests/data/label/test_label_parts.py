"""Verdicts, agreement, records, waits and the config of `llmscale data label`, each alone."""

import json
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from llmscale.config.endpoint import LimitsSection
from llmscale.config.problems import InputError
from llmscale.data.label.agreement import agreement, cohens_kappa, position, wilson_interval
from llmscale.data.label.answers import Answer, Answers, question
from llmscale.data.label.options import LabelConfig, WordsSection, load_label_config
from llmscale.data.label.pace import Pace, Stopped, retry_after
from llmscale.data.label.pairs import UnusableRecord, pairs_of, read_record
from llmscale.data.label.template import JudgeTemplate
from llmscale.data.label.verdict import Verdict, read_verdict, reconcile, spoken_at
from llmscale.data.preferences.records import read_answers

WORDS = WordsSection()
MARKED = WordsSection(marker="Verdict:", tie="tie")
SURE = Answer("A", "stop", 1, 1)


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("A", WORDS, "A"),
        (" **B**.", WORDS, "B"),
        ("[[C]]", WORDS, "C"),
        ("Answer A is better", WORDS, None),
        ("An answer", WORDS, None),
        ("", WORDS, None),
        ("A is good.\nVerdict: B", MARKED, "B"),
        ("Verdict: A? No.\nVerdict: **tie**", MARKED, "tie"),
        ("A, surely", MARKED, None),
        ("Verdict: Apple", MARKED, None),
    ],
)
def test_the_word_of_a_verdict(text: str, words: WordsSection, found: str | None) -> None:
    said = spoken_at(text, words)
    assert (said[0] if said else None) == found
    if said:
        assert text[said[1] :].startswith(said[0])


def test_log_probabilities_of_one_word_add_up() -> None:
    alternatives = {"A": -1.0, " A": -1.0, "B": -1.0, "Perhaps": -0.1}
    verdict = read_verdict(Answer("A", "stop", 1, 1, alternatives), WORDS)
    assert verdict is not None and verdict.is_graded
    assert (verdict.first, verdict.second, verdict.tie) == pytest.approx((2 / 3, 1 / 3, 0))
    plain = read_verdict(Answer("A", "stop", 1, 1, {"Perhaps": -0.1}), WORDS)
    assert plain == Verdict(1.0, 0.0, 0.0, False)


def config(**more: Any) -> LabelConfig:
    judge = {"endpoint": "http://host/v1", "name": "x", "template": "{{ prompt }}{{ first }}{{ second }}"}
    return LabelConfig.model_validate({"records": "r.jsonl", "output": "out", "judge": judge, **more})


def graded(first: float, second: float) -> Verdict:
    return Verdict(first, second, 1 - first - second, True)


@pytest.mark.parametrize(
    ("how", "a_first", "b_first", "winner", "probability_a"),
    [
        ("agree", (0.9, 0.1), (0.2, 0.8), "a", 0.85),
        ("agree", (0.1, 0.9), (0.7, 0.3), "b", 0.2),
        ("agree", (0.9, 0.1), (0.6, 0.4), "tie", 0.65),
        ("mean", (0.9, 0.1), (0.6, 0.4), "a", 0.65),
        ("mean", (0.6, 0.4), (0.58, 0.42), "tie", 0.51),
        ("agree", (0.2, 0.2), (0.2, 0.2), "tie", 0.5),
        ("agree", (0.9, 0.1), (0.2, 0.2), "tie", 0.7),
    ],
)
def test_two_orders_become_one_outcome(how, a_first, b_first, winner, probability_a) -> None:
    outcome = reconcile([graded(*a_first), graded(*b_first)], config(reconcile=how))
    assert outcome.winner == winner and outcome.probability_a == pytest.approx(probability_a)
    if winner == "b":
        assert outcome.probability == pytest.approx(1 - probability_a)


def test_kappa_is_cohens() -> None:
    # By hand: 20 + 15 of 50 agree, 0.7; by chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5; (0.7 - 0.5) / 0.5 = 0.4.
    assert cohens_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    # Three classes: 7 of 10 agree; by chance (4 x 4 + 3 x 3 + 3 x 3) / 100 = 0.34; 0.36 / 0.66.
    assert cohens_kappa([[3, 1, 0], [0, 2, 1], [1, 0, 2]]) == pytest.approx((0.7 - 0.34) / 0.66)
    assert cohens_kappa([[5, 0], [0, 0]]) is None and cohens_kappa([[0, 0], [0, 0]]) is None
    assert cohens_kappa([[4, 0], [0, 4]]) == 1 and cohens_kappa([[0, 4], [4, 0]]) == -1


def test_agreement_counts_ties_apart() -> None:
    found = agreement([("a", "a"), ("b", "b"), ("b", "a"), ("a", "tie"), ("tie", "tie")])
    assert (found.pairs, found.decided, found.accuracy) == (5, 3, pytest.approx(2 / 3))
    assert found.confusion == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_position_counts_places() -> None:
    outcomes = [
        reconcile([graded(0.9, 0.1), graded(0.9, 0.1)], config()),
        reconcile([graded(0.9, 0.1), graded(0.1, 0.9)], config()),
        reconcile([graded(0.1, 0.9), graded(0.1, 0.9)], config()),
        reconcile([graded(0.9, 0.1), graded(0.1, 0.1)], config()),
    ]
    found = position(outcomes)
    assert (found.verdicts, found.first_chosen, found.consistent) == (7, 4 / 7, 0.25)
    assert (found.always_first, found.always_second) == (1, 1)


def test_the_sides_of_a_pair_do_not_follow_the_human() -> None:
    sides = []
    for number in range(200):
        record = {"prompt": f"p{number}", "chosen": "good", "rejected": "bad"}
        (pair,) = pairs_of(read_record(1, record, {}))
        assert {pair.a, pair.b} == {"good", "bad"} and (pair.human == "a") == (pair.a == "good")
        (swapped,) = pairs_of(read_record(1, {**record, "chosen": "bad", "rejected": "good"}, {}))
        assert (swapped.a, swapped.b, swapped.draw) == (pair.a, pair.b, pair.draw)
        assert swapped.human != pair.human
        sides.append(pair.human)
    assert 60 < sides.count("a") < 140


def test_every_two_responses_are_a_pair() -> None:
    record = {"question": "p", "responses": ["x", "y", "x ", "z"], "ranks": [1, 2, 1, 2]}
    pairs = list(pairs_of(read_record(7, record, {"prompt": "question"})))
    assert len(pairs) == 5 and sum(pair.human == "tie" for pair in pairs) == 1
    for pair in pairs:
        if pair.human != "tie":
            assert (pair.a if pair.human == "a" else pair.b).strip() == "x"


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, GOOD, BAD = said("user", "p"), said("assistant", "good"), said("assistant", "bad")


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, {}),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, {}),
        ({"prompt": "p", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, {}),
        ({"instruction": "p", "chosen": "good", "rejected": "bad"}, {}),
        ({"question": "p", "chosen": "good", "no": "bad"}, {"instruction": "question", "rejected": "no"}),
    ],
)
def test_whatever_says_who_speaks_becomes_messages(record: dict[str, Any], fields: dict[str, str]) -> None:
    """What comes out is trained on as what went in."""
    (pair,) = pairs_of(read_record(1, record, fields))
    assert pair.prompt == [USER]
    chosen, rejected = (pair.a, pair.b) if pair.human == "a" else (pair.b, pair.a)
    assert (chosen, rejected) == ([GOOD], [BAD])
    read = [
        read_answers(one, names, with_margin=False)
        for one, names in (
            (record, fields),
            ({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}, {}),
        )
    ]
    assert [*read[0].contents()] == [*read[1].contents()]


def test_a_prompt_of_messages_is_a_prompt() -> None:
    for record, fields in (({"messages": [USER]}, {"prompt": "messages"}), ({"instruction": "p"}, {})):
        judged = read_record(1, record, fields)
        assert (judged.prompt, judged.responses) == ([USER], ())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "has no prompt"),
        ({"prompt": "p", "responses": "x"}, "no list"),
        ({"prompt": "p", "responses": ["x", 3]}, "texts or lists of messages"),
        ({"prompt": "p", "responses": ["x", "y"], "ranks": [1]}, "one for each"),
        ({"prompt": [{"role": "user"}], "chosen": "x", "rejected": "y"}, "neither a content nor tool_calls"),
        ({"prompt": [{"role": "user"}], "responses": ["x", "y"]}, "content is no text"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"fields=\{prompt: messages\}"),
        ({"prompt": "p", "chosen": "x", "rejected": ["y", "z"]}, "as a list in `responses`"),
        ({"chosen": "x", "rejected": "y"}, "has no prompt, and chosen and rejected do not begin alike"),
    ],
)
def test_unusable_records_say_why(record: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableRecord, match=message):
        read_record(1, record, {})


def test_waits() -> None:
    assert retry_after("3") == 3 and retry_after(None) is None and retry_after("soon") is None
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    assert 57 < (retry_after(date) or 0) <= 60
    stop = threading.Event()
    pace = Pace(LimitsSection(longest_wait_seconds=5), stop)
    assert 0.25 <= pace.backoff(0) <= 0.5 and 2.5 <= pace.backoff(20) <= 5
    stop.set()
    with pytest.raises(Stopped):
        pace.wait_for_turn(1)


def test_answers_outlive_a_cut_line_and_refuse_a_damaged_one(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with Answers(file) as answers:
        answers.add("judge", [("k1", SURE), ("k2", Answer("B", "stop", 3, 2, {"B": -0.1}))])
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "k3", "of"')
    with Answers(file) as answers:
        assert "k3" not in answers and answers["k2"].alternatives == {"B": -0.1}
        assert answers.spent("judge") == (2, 7) and answers.spent("candidates") == (0, 0)
        with pytest.raises(InputError, match="another command"):
            Answers(file)
    assert file.read_bytes() == whole
    file.write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match="line 1 is no answer"):
        Answers(file)


def test_a_question_is_known_by_all_that_it_depends_on() -> None:
    asked = [{"role": "user", "content": "x"}]
    keys = {
        question("judge", asked).key,
        question("other", asked).key,
        question("judge", asked, 1).key,
        question("judge", [{"role": "system", "content": "x"}]).key,
    }
    assert len(keys) == 4 and question("judge", asked).key in keys


def test_every_problem_of_a_config_is_told_at_once(tmp_path: Path) -> None:
    tree = {
        "records": "r.jsonl",
        "output": str(tmp_path),
        "one_principle": True,
        "judge": {
            "endpoint": "host/v1",
            "key_variable": "NOT_SET_ANYWHERE",
            "template": "{{ prompt }} {{ first }} {{ third }}",
            "words": {"first": "A", "second": "A"},
        },
        "candidates": {"temperature": 0},
    }
    file = tmp_path / "label.yaml"
    file.write_text(json.dumps(tree))
    with pytest.raises(InputError) as caught:
        load_label_config(file)
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == sorted(
        ["judge.endpoint", "judge.name", "judge.key_variable", "judge.template", "judge.template"]
        + ["judge.words", "one_principle", "candidates", "candidates.temperature"]
    )
    with pytest.raises(InputError, match="did you mean judge"):
        load_label_config(file, ["jugde.name=x"])


@pytest.mark.parametrize("name", ["helpful", "reasoned"])
def test_shipped_configs_ask_a_whole_question(repository: Path, name: str) -> None:
    found = load_label_config(repository / "configs" / "label" / f"{name}.yaml")
    template = JudgeTemplate(found.judge.template, found.judge.words.model_dump())
    text = template.render("the prompt", "one answer", "another", found.constitution)
    for part in ("the prompt", "one answer", "another", found.constitution[0], *found.judge.words.spoken()):
        assert part in text
