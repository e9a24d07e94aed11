"""What is wrong with the rewards of a config, told before anything starts: functions are imported once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llmscale.config.problems import Problem
from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.data.label.template import template_faults
from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.rewards.final_number import number_of
from llmscale.rlhf.rewards.judge import KNOWN, NEEDED
from llmscale.rlhf.rewards.limited import LimitedProcess, WorkerFailed

FIRST = 100
"""Prompts that are looked at."""


def setup_problems(rewards: Sequence[RewardTerm], key: str = "rlhf.rewards") -> Iterator[Problem]:
    """Everything beside what the sections tell by themselves (`llmscale.config.rlhf_rewards`).

    A function is imported as it will be in the run: in a subprocess, under the same limits.
    """
    for place, term in enumerate(rewards):
        if term.kind == "function" and term.function is not None:
            fault = _import_fault(term)
            if fault is not None:
                yield Problem(f"{key}.{place}.function", term.function, fault)
        if term.judge is not None and term.judge.template is not None:
            for fault in template_faults(term.judge.template, NEEDED, KNOWN):
                yield Problem(f"{key}.{place}.judge.template", "", fault)


def field_problems(
    rewards: Sequence[RewardTerm], prompts: Sequence[Prompt], key: str = "rlhf.rewards"
) -> Iterator[Problem]:
    """Rewards whose fields the prompts do not have, told by the first of them."""
    for place, term in enumerate(rewards):
        if term.kind == "math":
            yield from _missing(term, prompts, f"{key}.{place}.answer", term.answer, _is_number)
        if term.kind == "python" and term.tests is not None:
            yield from _missing(term, prompts, f"{key}.{place}.tests", term.tests, _is_text)


def _missing(
    term: RewardTerm, prompts: Sequence[Prompt], key: str, name: str, is_right: Callable[[Any], bool]
) -> Iterator[Problem]:
    first = prompts[:FIRST]
    without = [prompt for prompt in first if not is_right(prompt.fields.get(name))]
    allowed = term.max_error_share * len(first) if term.on_error == "drop" else 0
    if len(without) > allowed:
        what = "single number" if term.kind == "math" else "text"
        message = (
            f"{len(without)} of the first {len(first)} prompts have no {what} in this field, such as "
            f"{without[0].record}: {without[0].fields.get(name)!r:.60}"
        )
        yield Problem(key, name, message)


def _is_number(value: Any) -> bool:
    return number_of(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _import_fault(term: RewardTerm) -> str | None:
    assert term.function is not None
    process = LimitedProcess(term.function, "reward", term.worker)
    try:
        process.start()
    except WorkerFailed as error:
        return f"cannot be used: {error}"
    finally:
        process.close()
    return None
