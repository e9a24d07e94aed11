"""The final number of an answer: a table of what people and models write, and of what poses as it."""

import time
from fractions import Fraction

import pytest

from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.rlhf.rewards.final_number import Number, final_number, number_of, same
from llmscale.rlhf.rewards.reward import Means
from llmscale.rlhf.rewards.table import open_reward
from tests.rlhf.reward_samples import sample

CASES = [
    # marked
    ("so 6*7 = 42\n#### 42", 42),
    ("#### 42 apples", 42),
    ("#### 42.", 42),
    ("#### 42.0", 42),
    ("#### .5", "1/2"),
    ("#### 2 + 3 = 5", 5),
    ("\\boxed{42}", 42),
    ("\\boxed{x = 5}", 5),
    ("\\boxed{\\boxed{42}}", 42),
    ("\\boxed{42\\text{ cm}}", 42),
    ("\\boxed{5\\text{ cm}^2}", 5),
    ("The answer is 7.", 7),
    ("the final answer is: 7.5", "7.5"),
    ("The answer is **42**.", 42),
    ("Answer = 12", 12),
    ("answer: 5 km/h", 5),
    ("The answer is 6. It took me 3 steps", 6),
    # thousands, decimals, currency, percent, units
    ("#### 1,234,567", 1234567),
    ("the answer is $1,234.50.", "1234.5"),
    ("#### 20€", 20),
    ("£3.50", "3.5"),
    ("\\$20", 20),
    ("$20$", 20),
    ("\\(20\\)", 20),
    ("\\boxed{12{,}000}", 12000),
    ("100,000.", 100000),
    ("#### 50%", 50),
    ("\\boxed{50\\%}", 50),
    ("#### 5 m^2", 5),
    ("1e3", 1000),
    # signs
    ("#### -5", -5),
    ("#### \u22125", -5),
    ("#### -$5", -5),
    ("#### $-5$", -5),
    ("(-3)", -3),
    ("7-3=4", 4),
    ("from 3-4", 4),
    # fractions
    ("\\boxed{\\frac{3}{4}}", "3/4"),
    ("\\boxed{-\\frac{1}{2}}", "-1/2"),
    ("\\boxed{-\\dfrac12}", "-1/2"),
    ("\\boxed{1\\frac{1}{2}}", "3/2"),
    ("1 1/2", "3/2"),
    ("-1 1/2", "-3/2"),
    ("½", "1/2"),
    ("3½", "7/2"),
    ("3/4 of it", "3/4"),
    # the last number of a text without marks
    ("It costs $5 and $6", 6),
    ("In 2020, he had 5.", 5),
    ("the answer is found by adding 2 and 3. It is 5", 5),
    # several answers: the last marked one
    ("#### 41\n#### 42", 42),
    ("\\boxed{41} no, \\boxed{42}, and 43 is wrong", 42),
    ("The answer is 41. No: \\boxed{42}", 42),
    ("#### 42\nThe answer is above.", 42),
    # none, or more than one where one should stand
    ("", None),
    (" \n", None),
    ("no number", None),
    ("#### ", None),
    ("42\n####", None),
    ("#### 41 42", None),
    ("#### 42 or 43", None),
    ("#### 3-4", None),
    ("#### 1 234", None),
    ("#### 1,23", None),
    ("#### 3:30", None),
    ("\\boxed{5, 7}", None),
    ("\\boxed{12\\,000}", None),
    ("\\boxed{42", None),
    ("\\boxed{}", None),
    ("#### 10^5", None),
    ("#### 1/0", None),
    ("#### nan", None),
    ("#### inf", None),
    ("#### 1e999999999", None),
    ("#### " + "9" * 5000, None),
    ("#### \u0663", None),
    ("x^2", None),
]


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_final_numbers(text: str, wanted: object) -> None:
    found = final_number(text)
    assert (None if found is None else found.value) == (None if wanted is None else Fraction(str(wanted)))


def test_without_a_mark_a_number_counts_only_where_it_may() -> None:
    assert final_number("it is 42", marked=True) is None
    assert final_number("#### 42", marked=True) == Number(Fraction(42))


def test_a_percent_sign_is_a_unit_or_a_hundredth() -> None:
    fifty, percent, half = Number(Fraction(50)), Number(Fraction(50), True), Number(Fraction(1, 2))
    assert same(percent, fifty)
    assert same(percent, half)
    assert same(half, percent)
    assert not same(fifty, half)
    assert not same(Number(Fraction(1, 2), True), fifty)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (42, 42),
        (0.1, "1/10"),
        ("42", 42),
        ("6*7\n#### 42", 42),
        (True, None),
        (None, None),
        ([42], None),
        ("", None),
    ],
)
def test_the_right_number_of_a_record(value: object, wanted: object) -> None:
    found = number_of(value)
    assert (None if found is None else found.value) == (None if wanted is None else Fraction(str(wanted)))


@pytest.mark.parametrize(
    "part",
    [
        "1",
        "1,",
        "1 ",
        "1/",
        "-",
        "$-",
        "#### ",
        "\\boxed{",
        "answer is ",
        "\\frac{",
        "*",
        " ",
        "\\text{",
        "½",
        "e9",
    ],
)
def test_no_text_takes_long(part: str) -> None:
    begin = time.process_time()
    final_number(part * (60_000 // len(part)))
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("#### 42", "first 6, then\n#### 42", 1.0),
        ("#### 42", 42, 1.0),
        ("#### 42.0000001", 42, 0.0),
        ("#### 0.3333", "1/3", 0.0),
        ("#### 1/3", "1/3", 1.0),
        ("#### 41", 42, 0.0),
        ("", 42, 0.0),
        ("#### 41 42 43", 42, 0.0),
    ],
)
def test_the_reward(completion: str, answer: object, value: float) -> None:
    reward = open_reward(RewardTerm(kind="math"), Means())
    assert reward.score([sample(completion, answer=answer)])[0].value == value


def test_a_cut_answer_counts_by_its_mark_alone() -> None:
    reward = open_reward(RewardTerm(kind="math"), Means())
    cut = [sample("we have 4", finished=False, answer=4), sample("\\boxed{4} so", finished=False, answer=4)]
    assert [one.value for one in reward.score(cut)] == [0.0, 1.0]


def test_a_record_without_a_number_is_an_error_and_not_0() -> None:
    reward = open_reward(RewardTerm(kind="math", answer="target"), Means())
    [found] = reward.score([sample("#### 42", line=3, target="forty-two")])
    assert found.value is None
    assert found.error == "prompts.jsonl, line 3: its field target holds no single number, but 'forty-two'"
