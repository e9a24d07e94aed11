"""What is wrong with the rewards of a config, told before anything starts: functions are imported once."""

from collections.abc import Iterator, Sequence

from llmscale.config.problems import Problem
from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.data.label.template import template_faults
from llmscale.rlhf.rewards.judge import KNOWN, NEEDED
from llmscale.rlhf.rewards.limited import LimitedProcess, WorkerFailed


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
