"""Rewards as a run has them: sections, weighted sums, errors that are counted, judges, constant answers."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from llmscale.config.problems import InputError, Problem
from llmscale.config.rlhf_rewards import RewardTerm, WorkerSection, reward_problems
from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.rewards.checks import field_problems, setup_problems
from llmscale.rlhf.rewards.constant import constant_answer_warnings, constant_answers
from llmscale.rlhf.rewards.reward import Means, RewardFailed, Sample
from llmscale.rlhf.rewards.weighted import Rewards
from tests.data.label.fake_endpoint import FakeEndpoint, serving
from tests.rlhf.reward_samples import sample, samples

FUNCTIONS = "tests.rlhf.hostile_functions"


def terms(*sections: Any) -> list[RewardTerm]:
    return TypeAdapter(list[RewardTerm]).validate_python(sections)


def problems(*sections: Any) -> dict[str, str]:
    return {problem.key: problem.message for problem in reward_problems(terms(*sections))}


def obedient(**more: Any) -> dict[str, Any]:
    return {"kind": "function", "function": f"{FUNCTIONS}:obedient", **more}


CHOOSY = f"{FUNCTIONS}:choosy"


def test_sections_that_are_right() -> None:
    assert problems("model") == {}
    judge = {"endpoint": "http://host/v1", "name": "judge"}
    assert problems("math", obedient(weight=-0.5), {"kind": "judge", "judge": judge}) == {}
    assert problems(obedient(), obedient(name="again")) == {}


def test_every_problem_is_told_at_once() -> None:
    found = problems(
        obedient(function="no colon", tests="tests"),
        {"kind": "model", "weight": 0, "worker": {"count": 2}},
        {"kind": "judge"},
        {"kind": "judge", "name": "second judge", "judge": {"endpoint": "host", "key_variable": "NOT_SET_X"}},
        "math",
        "math",
    )
    assert found["rlhf.rewards.0.function"].startswith("must name a function as module:name")
    assert found["rlhf.rewards.0.tests"] == "is not read by kind = function, but by python; leave it out"
    assert found["rlhf.rewards.1.weight"].startswith("counts for nothing")
    assert "but by function, python" in found["rlhf.rewards.1.worker"]
    assert "is needed: endpoint and name" in found["rlhf.rewards.2.judge"]
    assert found["rlhf.rewards.3.name"].startswith("must be of letters")
    assert {"rlhf.rewards.3.judge.endpoint", "rlhf.rewards.3.judge.name"} <= {*found}
    assert "is not set in the environment" in found["rlhf.rewards.3.judge.key_variable"]
    assert "is the name of several rewards" in found["rlhf.rewards.4.name"]
    assert [problem.key for problem in reward_problems([])] == ["rlhf.rewards"]


def test_functions_are_imported_before_anything_starts() -> None:
    small = {"memory_mib": 300}
    sections = terms(
        obedient(worker=small),
        {"kind": "function", "function": f"{FUNCTIONS}:nobody", "worker": small},
        {"kind": "judge", "judge": {"template": "{{ prompt }} {{ anwser }}"}},
    )
    found: list[Problem] = [*setup_problems(sections)]
    assert [problem.key for problem in found] == [
        "rlhf.rewards.1.function",
        "rlhf.rewards.2.judge.template",
        "rlhf.rewards.2.judge.template",
    ]
    assert f"the module {FUNCTIONS} has no nobody" in found[0].message
    assert "does not use {{ answer }}" in found[1].message


def test_fields_that_rewards_read_must_be_there() -> None:
    def prompts(*fields: dict[str, Any]) -> list[Prompt]:
        return [Prompt("q", (1,), f"line {line}", one) for line, one in enumerate(fields, start=1)]

    sections = terms("math", {"kind": "python", "tests": "tests"})
    whole = prompts(*[{"answer": "#### 4", "tests": "assert f"}] * 3)
    assert [*field_problems(sections, whole)] == []
    number, tests = field_problems(sections, [*whole, *prompts({"answer": "four"}, {"answer": 5})])
    assert number.key == "rlhf.rewards.0.answer"
    assert number.message == (
        "1 of the first 5 prompts have no single number in this field, such as line 1: 'four'"
    )
    assert tests.message == "2 of the first 5 prompts have no text in this field, such as line 1: None"
    patient = terms({"kind": "math", "on_error": "drop", "max_error_share": 0.3})
    assert [*field_problems(patient, [*whole, *prompts({"answer": "four"})])] == []


def test_the_sum_is_weighted_and_its_parts_are_kept() -> None:
    sections = terms({"kind": "math", "weight": 2}, {"kind": "model", "weight": -0.5, "name": "taste"})

    def scores(texts: Sequence[Sequence[int]]) -> list[float]:
        assert [*texts] == [(7, 8, 9), (7, 8, 9)]  # prompt and answer
        return [3.0, 1.0]

    with Rewards(sections, Means(scores)) as rewards:
        found = rewards.score([sample("#### 4", answer=4), sample("", answer=4)])
    assert [one.value for one in found] == [2 - 1.5, -0.5]
    assert found[0].parts == {"math": 1.0, "math.answered": 1.0, "taste": 3.0}
    assert rewards.errors == {"math": 0, "taste": 0}


def test_without_a_reward_the_run_stops() -> None:
    with Rewards(terms(obedient(name="mine", function=CHOOSY))) as rewards:
        with pytest.raises(RewardFailed) as caught:
            rewards.score(samples("a", "none", "b"))
        assert rewards.errors == {"mine": 1}
    assert "the reward mine could not be told of 1 of 3 answers (on_error=stop)" in str(caught.value)
    assert "prompts.jsonl, line 2: returned None" in str(caught.value)


def test_or_the_answer_is_left_out_and_counted() -> None:
    section = obedient(name="mine", function=CHOOSY, on_error="drop", max_error_share=0.25)
    with Rewards(terms(section, {"kind": "python"})) as rewards:
        found = rewards.score(samples("a", "none", *"bcdefg", "none"))
        assert [one.value is None for one in found] == [False, True, *[False] * 6, True]
        assert found[1].error == "mine: prompts.jsonl, line 2: returned None, which is no number"
        assert found[1].parts["python"] == 0.0  # what is known of it is told
        assert rewards.errors == {"mine": 2, "python": 0}
        with pytest.raises(RewardFailed, match="of 3 of 4 answers .on_error=drop"):
            rewards.score(samples("none", "none", "none", "a"))
        assert rewards.errors["mine"] == 5
        # Of a few answers, one alone is no share.
        assert [one.value for one in rewards.score(samples("none", "a"))] == [None, 1.0]


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    with Rewards(
        terms({"kind": "model", "on_error": "drop"}), Means(lambda texts: [float("nan")])
    ) as rewards:
        [found] = rewards.score([sample("a")])
    assert (found.value, found.error) == (None, "model: prompts.jsonl, line 1: the score is nan")


def test_a_reward_of_the_model_needs_the_model() -> None:
    with pytest.raises(ValueError, match="needs the scores of a reward model"):
        Rewards(terms("math", "model"))


class Marks:
    """What the judge says to an answer."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said

    def __call__(self, asked: str) -> tuple[str, None]:
        answer = asked.split("<answer>\n")[1].split("\n</answer>")[0]
        return self.said[answer], None


def judge(server: FakeEndpoint, **more: Any) -> dict[str, Any]:
    limits = {"retries": 1, "longest_wait_seconds": 0.1, "timeout_seconds": 5}
    section = {"endpoint": server.url, "name": "judge", "limits": limits, **more}
    return {"kind": "judge", "judge": section, "on_error": "drop", "max_error_share": 1}


def test_marks_of_a_judge_are_rewards_from_0_to_1(tmp_path: Path) -> None:
    said = {"a": "10", "b": "1", "c": " **7**.", "d": "11", "e": "0", "f": "good", "g": "7.5", "h": "-3"}
    with serving(FakeEndpoint(Marks(said))) as server:
        for _ in range(2):  # the second run pays nothing
            with Rewards(terms(judge(server)), Means(folder=tmp_path)) as rewards:
                found = rewards.score(samples(*said))
        assert sum(server.paid.values()) == len(said)
    assert [one.value for one in found[:3]] == [1.0, 0.0, pytest.approx(2 / 3)]
    assert [one.value for one in found[3:]] == [None] * 5
    assert "line 6: the judge gave no mark from 1 to 10: 'good'" in (found[5].error or "")
    assert found[2].parts == {"judge": pytest.approx(2 / 3), "judge.mark": 7.0}
    assert rewards.errors == {"judge": 5}


def test_a_judge_may_think_aloud() -> None:
    said = {"a": "It has 3 faults. Mark: 2", "b": "Mark: 1? No. Mark: 5 of 5", "c": "5"}
    with (
        serving(FakeEndpoint(Marks(said))) as server,
        Rewards(terms(judge(server, best=5, marker="Mark:"))) as rewards,
    ):
        assert [one.value for one in rewards.score(samples(*said))] == [0.25, 1.0, None]


def test_a_judge_that_is_silent_is_an_error_and_what_it_said_is_kept(tmp_path: Path) -> None:
    said = {str(number): "5" for number in range(4)}
    answered = threading.Event()

    def faults(_number: int) -> str | None:
        return "500" if answered.is_set() else None

    with (
        serving(FakeEndpoint(Marks(said), faults)) as server,
        Rewards(terms(judge(server)), Means(folder=tmp_path)) as rewards,
    ):
        rewards.score(samples("0", "1"))
        answered.set()
        found = rewards.score(samples(*said))
    assert [one.value for one in found] == [pytest.approx(4 / 9)] * 2 + [None] * 2
    assert "HTTP 500" in (found[2].error or "")
    assert rewards.errors == {"judge": 2}


def test_two_runs_do_not_share_the_answers_of_a_judge(tmp_path: Path) -> None:
    with serving(FakeEndpoint(Marks({}))) as server:
        sections = terms(judge(server))
        with Rewards(sections, Means(folder=tmp_path)), pytest.raises(InputError, match="another"):
            Rewards(sections, Means(folder=tmp_path))


def asked(count: int) -> list[Sample]:
    return [sample("", f"What is {number}?", answer=number) for number in range(count)]


def test_a_reward_that_a_constant_answer_gets_is_found() -> None:
    """Length, which needs no prompt; the right number, which does; Python, which counts only once."""
    with Rewards(terms({"kind": "function", "function": f"{FUNCTIONS}:length"})) as rewards:
        best = constant_answers(rewards.score, asked(5))[0]
    assert best.mean == len(best.completion)
    with Rewards(terms("math")) as rewards:
        found = constant_answers(rewards.score, asked(50))
    assert max(one.mean for one in found) == pytest.approx(1 / 50)
    assert constant_answer_warnings(found, 0.1) == []
    with Rewards(terms({"kind": "python", "worker": WorkerSection()})) as rewards:
        found = constant_answers(rewards.score, asked(5))
        assert {one.mean for one in found} == {0.0}
        # Of one prompt alone nobody can tell.
        [first, *_] = constant_answer_warnings(constant_answers(rewards.score, asked(1)), 0.1)
    assert first.startswith("this reward can be had by a constant answer: ")
    assert first.endswith("to every prompt gets 1")


def test_a_constant_answer_without_a_reward_says_nothing() -> None:
    with Rewards(terms(obedient(function=CHOOSY))) as rewards:
        found = constant_answers(rewards.score, asked(3), constants=["none", "a"])
    assert [(one.completion, one.mean) for one in found] == [("a", 1.0)]


def test_what_a_reward_model_reads_is_prompt_and_constant() -> None:
    def scores(texts: Sequence[Sequence[int]]) -> list[float]:
        assert [[*text] for text in texts] == [[7, 5, 5]] * 3
        return [2.0] * 3

    with Rewards(terms("model"), Means(scores)) as rewards:
        [found] = constant_answers(rewards.score, asked(3), lambda text: [5] * len(text), ["aa"])
    assert (found.completion, found.mean) == ("aa", 2.0)


@pytest.mark.parametrize(
    ("section", "completion"),
    [
        ({"kind": "function", "function": f"{FUNCTIONS}:obedient"}, "hang"),
        ({"kind": "python", "tests": "tests"}, "import time\ntime.sleep(1000)"),
    ],
)
def test_what_is_under_way_ends_when_the_run_stops(section: dict[str, Any], completion: str) -> None:
    with Rewards(terms(section)) as rewards:
        timer = threading.Timer(1.0, rewards.stop)
        timer.start()
        begin = time.monotonic()
        with pytest.raises(RewardFailed):
            rewards.score([sample(completion, tests="assert True") for _ in range(4)])
        assert time.monotonic() - begin < 10
        timer.join()
