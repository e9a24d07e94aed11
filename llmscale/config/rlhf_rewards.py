"""Sections of the rewards of `task: rlhf`: what an answer is worth, and what may be spent on telling it."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from llmscale.config.endpoint import EndpointSection, endpoint_problems
from llmscale.config.problems import Problem
from llmscale.config.section import PositiveFloat, PositiveInt, Section

RewardKind = Literal["model", "function", "judge", "math", "python"]
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class WorkerSection(Section):
    """What a subprocess of a reward may use. This is against accidents, not against attacks: it is no
    security boundary."""

    count: PositiveInt = 1
    """Subprocesses among which the answers of a batch are shared out."""
    timeout_seconds: PositiveFloat = 60.0
    """For one batch (`python`: for one answer with its tests). What takes longer is killed."""
    start_seconds: PositiveFloat = 120.0
    """Until the function's module is imported."""
    cpu_seconds: PositiveInt = 60
    """CPU time of one batch (`python`: of one answer with its tests), over all threads."""
    memory_mib: PositiveInt = 4096
    """Address space of each process, and what all processes of a worker may have in memory together."""
    file_mib: PositiveInt = 64
    """Largest file that may be written."""
    open_files: Annotated[int, Field(ge=16)] = 64
    processes: PositiveInt = 16
    """Processes that a worker may be, itself included."""
    environment: list[str] = []
    """Variables of the environment that it gets beside PATH, HOME, the language and those of Python."""


class RewardJudgeSection(EndpointSection):
    """A model that gives marks, asked as `llmscale data label` asks."""

    system: str | None = None
    """What the system message says."""
    template: str | None = None
    """Jinja of the question: `prompt`, `answer`, `best`, and `record`, the other fields of the record. Left
    out: how well the answer does what was asked."""
    best: Annotated[int, Field(ge=2, le=1000)] = 10
    """The highest mark; the lowest is 1. Marks become rewards from 0 to 1."""
    marker: str | None = None
    """What stands before the mark (`"Mark:"`) of a judge that thinks aloud. Left out: it says the mark
    alone."""


class RewardTerm(Section):
    """One reward; the reward of an answer is the weighted sum of all."""

    @classmethod
    def shorthand(cls) -> str:
        return "kind"

    kind: RewardKind
    """model: the score of a reward model; function: one of yours; judge: marks of another model; math: the
    final number is right; python: the answer is Python, and passes the record's tests."""
    name: str | None = None
    """What metrics call it. Left out: `kind`."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    function: str | None = None
    """`module:name` of a Python function of `(prompts, completions, **fields)` that returns a number for
    each (function)."""
    answer: str = "answer"
    """Field of the record that holds the right number (math)."""
    marked: bool = False
    """Only a number behind `####`, in `\\boxed{}` or behind "the answer is" counts, not the last one of the
    text (math)."""
    tests: str | None = None
    """Field of the record with Python that is run after the answer's and raises where that is wrong (python).
    Left out: nothing is run, and what counts is that the answer is Python that does something."""
    with_prompt: bool = False
    """The prompt, a text, is the beginning of the program (python)."""
    judge: RewardJudgeSection | None = None
    """Who gives the marks (judge)."""
    on_error: Literal["stop", "drop"] = "stop"
    """Where there is no reward, because a function failed or a judge was silent: the run stops, or the answer
    is left out of training. It is never 0."""
    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Of the answers of one step that may go without a reward (drop); with more the run stops."""
    worker: WorkerSection = WorkerSection()
    """Where functions and Python run (function, python)."""

    @property
    def name_or_default(self) -> str:
        return self.name or self.kind


OF_KIND: dict[str, tuple[str, ...]] = {
    "model": (),
    "function": ("function", "worker"),
    "judge": ("judge",),
    "math": ("answer", "marked"),
    "python": ("tests", "with_prompt", "worker"),
}
"""Keys that each kind reads beside those that all read."""
OF_ALL = ("kind", "name", "weight", "on_error", "max_error_share")


def reward_problems(rewards: Sequence[RewardTerm], key: str = "rlhf.rewards") -> Iterator[Problem]:
    """Everything that is wrong with the section at the dotted `key`, as far as it tells by itself."""
    if not rewards:
        yield Problem(key, [], "names no reward; `rewards: [{kind: model}]` is the score of a reward model")
    for place, reward in enumerate(rewards):
        yield from _of_one(reward, f"{key}.{place}")
    names = Counter(reward.name_or_default for reward in rewards)
    for place, reward in enumerate(rewards):
        if names[reward.name_or_default] > 1:
            message = "is the name of several rewards, which metrics could not tell apart; give each its own"
            yield Problem(f"{key}.{place}.name", reward.name_or_default, message)


def _of_one(reward: RewardTerm, key: str) -> Iterator[Problem]:
    yield from _foreign(reward, key)
    if not math.isfinite(reward.weight) or reward.weight == 0:
        yield Problem(f"{key}.weight", reward.weight, "counts for nothing; leave the whole reward out")
    if reward.kind == "function" and not (reward.function and FUNCTION.fullmatch(reward.function)):
        message = "must name a function as module:name, such as my.rewards:brevity"
        yield Problem(f"{key}.function", reward.function, message)
    if reward.name is not None and not re.fullmatch(r"\w[\w.-]*", reward.name):
        yield Problem(f"{key}.name", reward.name, "must be of letters, digits, '_', '.' and '-'")
    if reward.kind == "judge":
        if reward.judge is None:
            yield Problem(f"{key}.judge", None, "says who gives the marks, and is needed: endpoint and name")
        else:
            yield from endpoint_problems(f"{key}.judge", reward.judge)


def _foreign(reward: RewardTerm, key: str) -> Iterator[Problem]:
    """A key that the kind does not read was meant for another one."""
    for name, field in RewardTerm.model_fields.items():
        value = getattr(reward, name)
        if name in (*OF_ALL, *OF_KIND[reward.kind]) or value == field.default:
            continue
        reading = ", ".join(kind for kind, keys in OF_KIND.items() if name in keys)
        message = f"is not read by kind = {reward.kind}, but by {reading}; leave it out"
        yield Problem(f"{key}.{name}", "{…}" if isinstance(value, Section) else value, message)
