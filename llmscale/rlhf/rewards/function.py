"""A reward that is a Python function, called in subprocesses with limits."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llmscale.config.rlhf_rewards import RewardTerm, WorkerSection
from llmscale.rlhf.rewards.limited import LimitedProcess, WorkerFailed
from llmscale.rlhf.rewards.reward import Means, Prompt, Sample, Scored, unknown

FAILURES_IN_A_ROW = 3
"""So many answers without a reward, one after the other: the fault is not theirs."""
RESERVED = ("prompts", "completions", "tokens", "finished")
"""What a function is called with beside the record's other fields, of which none can be called so."""


class FunctionReward:
    """
    Args:
        function: `module:name`; called with lists of one entry an answer, by name: `prompts`, `completions`,
            `tokens` (of the answers), `finished`, and each field that a record has (None where it is not).
    """

    def __init__(self, function: str, worker: WorkerSection) -> None:
        self._workers = [LimitedProcess(function, "reward", worker) for _ in range(worker.count)]

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """Every worker gets one part of the batch. A part that fails is asked once more, an answer at a time,
        so that one of them does not cost the others their rewards."""
        if not samples:
            return []
        size = -(-len(samples) // len(self._workers))
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        with ThreadPoolExecutor(len(parts)) as threads:
            return [one for part in threads.map(_part, self._workers, parts) for one in part]

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def open_reward(term: RewardTerm, _means: Means) -> FunctionReward:
    assert term.function is not None
    return FunctionReward(term.function, term.worker)


def _part(worker: LimitedProcess, samples: Sequence[Sample]) -> list[Scored]:
    try:
        return _values(worker, samples)
    except WorkerFailed as error:
        if len(samples) == 1:
            return [unknown(samples[0], str(error))]
    return _one_by_one(worker, samples)


def _one_by_one(worker: LimitedProcess, samples: Sequence[Sample]) -> list[Scored]:
    found: list[Scored] = []
    failed = 0
    message = ""
    for sample in samples:
        if failed >= FAILURES_IN_A_ROW:
            found.append(unknown(sample, f"not tried, after {failed} failures in a row: {message}"))
            continue
        try:
            found += _values(worker, [sample])
            failed = 0
        except WorkerFailed as error:
            failed, message = failed + 1, str(error)
            found.append(unknown(sample, message))
    return found


def _values(worker: LimitedProcess, samples: Sequence[Sample]) -> list[Scored]:
    """
    Raises:
        WorkerFailed
    """
    returned = worker.call(arguments_of(samples))
    if not isinstance(returned, list) or len(returned) != len(samples):
        raise WorkerFailed(f"{worker.function}: the worker answered with something that is none")
    return [
        Scored(float(value)) if isinstance(value, (int, float)) else unknown(sample, str(value))
        for sample, value in zip(samples, returned)
    ]


def arguments_of(samples: Sequence[Sample]) -> Mapping[str, Any]:
    """What a reward function is called with."""
    names = dict.fromkeys(name for sample in samples for name in sample.fields)
    fields = {name: [sample.fields.get(name) for sample in samples] for name in names}
    return {
        **fields,
        "prompts": [_plain(sample.prompt) for sample in samples],
        "completions": [sample.completion for sample in samples],
        "tokens": [[*sample.tokens[sample.prompt_tokens :]] for sample in samples],
        "finished": [sample.finished for sample in samples],
    }


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
