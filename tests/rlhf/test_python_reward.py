"""Whether an answer is Python that does something, and whether it passes tests that it cannot see."""

from collections.abc import Iterator

import pytest

from llmscale.config.rlhf_rewards import RewardTerm, WorkerSection
from llmscale.rlhf.rewards.python_code import PythonReward
from llmscale.rlhf.rewards.python_source import program_of, verdict
from tests.rlhf.left_processes import nothing_left
from tests.rlhf.reward_samples import sample, samples

LIMITS = WorkerSection(timeout_seconds=3, cpu_seconds=3, memory_mib=400, processes=8, count=2)
FIBONACCI = (
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n"
)


@pytest.fixture(scope="module")
def reward() -> Iterator[PythonReward]:
    opened = PythonReward(RewardTerm(kind="python", worker=LIMITS))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def tested() -> Iterator[PythonReward]:
    opened = PythonReward(RewardTerm(kind="python", tests="tests", worker=LIMITS))
    opened.score([sample("")])  # which starts the parser
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (FIBONACCI, "good"),
        ("print(1)", "good"),
        (" def f(a):\n    return a + 1", "good"),  # one blank of the template
        ("    def f(a):\n        return a + 1", "good"),
        ("```python\nprint(2)\n```", "good"),
        ("Sure:\n```py\ndef f(x):\n    return g(x)\n```\nThat is it.", "good"),
        ("```\nprint(1)", "good"),
        ("if x:\n    pass\nelse:\n    y += 1", "good"),
        ("match x:\n  case 1:\n    print(1)", "good"),
        ("class A:\n    def f(self):\n        return self.x", "good"),
        ("x = [a for a in b]", "good"),
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("# a comment\n# and another", "empty"),
        ("```python\n```", "empty"),
        ("pass", "trivial"),
        ("...", "trivial"),
        ('"""A docstring."""', "trivial"),
        ("42", "trivial"),
        ("x = 1", "trivial"),
        ("x: int", "trivial"),
        ("import os", "trivial"),
        ("Hello", "trivial"),
        ("this is good", "trivial"),
        ("well-known", "trivial"),
        ("def f():\n    pass", "trivial"),
        ("def f(a):\n    '''Does a lot.'''\n    return 1", "trivial"),
        ("class A:\n    x = 1", "trivial"),
        ("for i in x:\n    pass", "trivial"),
        ("try:\n    pass\nexcept E:\n    raise", "trivial"),
        ("print(1)\n" * 6, "repeated"),
        ("print(1); " * 6, "repeated"),
        (FIBONACCI * 4, "repeated"),
        ("return_of(a.b, a.b, a.b, a.b)", "repeated"),
        ("x = [self.a, self.b, self.a, self.b]", "repeated"),
        ("x = a.b + a.b + a.b + a.b", "repeated"),
        ("x = a or b or a or b", "repeated"),
        ("x = self.get.get.get.get", "repeated"),
        ("x = self.get_get_get_get", "repeated"),
        ("def get_the_get_the(a):\n    return a + 1", "repeated"),
        ("x = [f(0), f(1), f(2), f(1)]", "good"),
        ("x = pack(0, 0, 0, -1, -1, -1)", "good"),
        ("x = a.b + a.c + a.d", "good"),
        ("x = self.get_next_item_of_next", "good"),
        ("Here is the code: print(1)", "unparsable"),
        ("def f(:", "unparsable"),
        ("return f(x)", "unparsable"),
        ("```bash\nls\n```", "unparsable"),
        ("print(1", "unparsable"),
        ("\0", "unparsable"),
        ("(" * 1000, "unparsable"),
        ("-" * 100_000 + "1", "unparsable"),
        ("a." * 50_000 + "b", "unparsable"),
        ("x" + "[0]" * 100_000, "unparsable"),
    ],
)
def test_verdicts(answer: str, wanted: str) -> None:
    assert verdict(program_of(answer)) == wanted


def test_the_standard_library_is_python_that_does_something() -> None:
    """What people write is not taken for repeated."""
    sources = [module.__file__ for module in (__import__("json.decoder").decoder, __import__("textwrap"))]
    for source in sources:
        with open(str(source)) as file:  # noqa: PTH123
            assert verdict(file.read()) == "good"


def test_values_and_parts(reward: PythonReward) -> None:
    found = reward.score(samples(FIBONACCI, "pass", "# no", "def f(:", "f()\n" * 9))
    assert [one.value for one in found] == [1.0, 0.0, 0.0, 0.0, 0.0]
    kinds = ["", "trivial", "empty", "unparsable", "repeated"]
    assert [[kind for kind, number in one.parts.items() if number] for one in found] == [
        [kind] if kind else [] for kind in kinds
    ]


def test_one_answer_to_several_prompts_answers_none(reward: PythonReward) -> None:
    asked = [sample("print(1)", "q 1"), sample("print(1)", "q 1"), sample("print(2)", "q 2")]
    assert [one.value for one in reward.score(asked)] == [1.0, 1.0, 1.0]
    asked.append(sample(" print(1)\n", "q 3"))
    assert [one.value for one in reward.score(asked)] == [0.0, 0.0, 1.0, 0.0]
    asked = [sample(f"print(1)  # {number}", f"q {number}") for number in range(3)]
    assert [one.value for one in reward.score(asked)] == [0.0, 0.0, 0.0]


def test_the_prompt_may_be_the_beginning_of_the_program() -> None:
    reward = PythonReward(RewardTerm(kind="python", with_prompt=True, worker=LIMITS))
    found = reward.score([sample("a):\n    return a + 1", "def f("), sample("a + 1", "def f(")])
    assert [one.value for one in found] == [1.0, 0.0]
    reward.close()


TESTS = "assert [fibonacci(n) for n in range(7)] == [0, 1, 1, 2, 3, 5, 8]"


@pytest.mark.parametrize(
    ("program", "value"),
    [
        (FIBONACCI, 1.0),
        ("def fibonacci(n):\n    return n * n", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("raise SystemExit", 0.0),
        ("import time\ntime.sleep(1000)", 0.0),
        ("import os\nwhile True:\n    os.fork()", 0.0),
        ("x = bytearray(1 << 30)", 0.0),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 0.0),
        ("print('{\"result\": null}' * 3)", 0.0),
        ("import sys\nsys.stdout.write('x' * (1 << 20))", 0.0),
        ("def fibonacci(n):\n    return input()", 0.0),
    ],
)
def test_programs_are_run_with_their_tests(tested: PythonReward, program: str, value: float) -> None:
    with nothing_left():
        [found] = tested.score([sample(program, tests=TESTS)])
    assert (found.value, found.error) == (value, None)
    assert found.parts["failed"] == 1.0 - value


def test_programs_do_not_meet(tested: PythonReward) -> None:
    """What one leaves behind, the next does not find."""
    vandal = "import builtins\nbuiltins.len = lambda _: 3\nprint(len([]))"
    asked = [
        sample(vandal, tests="assert len([]) == 3"),
        sample("print(len([]))", tests="assert len([]) == 0"),
    ]
    assert [one.value for one in tested.score(asked)] == [1.0, 1.0]


@pytest.mark.parametrize("lie", ["{}", "null", '{"result": null}', '{"ready": true}'])
def test_a_program_does_not_answer_for_its_tests(tested: PythonReward, lie: str) -> None:
    program = f"import json\njson.dumps = lambda _: {lie!r}\nprint(json.dumps(1))"
    [found] = tested.score([sample(program, tests="assert False")])
    assert (found.value, found.error) == (0.0, None)


@pytest.mark.parametrize("tests", [None, "", "# later", "assert (", 3])
def test_a_record_without_tests_is_an_error_and_not_0(tested: PythonReward, tests: object) -> None:
    [found, other] = tested.score([sample(FIBONACCI, line=5, tests=tests), sample(FIBONACCI, tests=TESTS)])
    assert (found.value, other.value) == (None, 1.0)
    assert f"line 5: its field tests holds no Python to test with, but {tests!r}" in (found.error or "")
