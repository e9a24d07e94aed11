"""1 for an answer that is Python which does something and passes its tests, 0 for any other."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.rlhf.rewards.limited import LimitedProcess, WorkerFailed
from llmscale.rlhf.rewards.python_source import program_of
from llmscale.rlhf.rewards.reward import Means, Sample, Scored, unknown

SOURCE = "llmscale.rlhf.rewards.python_source:verdicts"
RUN = "llmscale.rlhf.rewards.python_run:run"


class PythonReward:
    """
    Args:
        term: `tests`, `with_prompt` and `worker` of it.
    """

    def __init__(self, term: RewardTerm) -> None:
        self._term = term
        # A parser can be brought down by what it parses.
        self._parser = LimitedProcess(SOURCE, "plain", term.worker)

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        if not samples:
            return []
        with ThreadPoolExecutor(self._term.worker.count) as threads:
            return [*threads.map(self._score, samples, self._verdicts(samples))]

    def close(self) -> None:
        self._parser.close()

    def _verdicts(self, samples: Sequence[Sample]) -> list[str | WorkerFailed]:
        programs = [self._program(sample) for sample in samples]
        try:
            found = self._parser.call({"programs": programs})
        except WorkerFailed:
            found = [self._verdict(program) for program in programs]
        if self._term.tests is not None:  # which are of one prompt alone
            return found
        copied = _given_to_several(samples)
        return ["repeated" if is_copied else one for one, is_copied in zip(found, copied)]

    def _verdict(self, program: str) -> str | WorkerFailed:
        try:
            return self._parser.call({"programs": [program]})[0]
        except WorkerFailed as error:
            return error

    def _program(self, sample: Sample) -> str:
        if self._term.with_prompt and isinstance(sample.prompt, str):
            return sample.prompt + sample.completion
        return program_of(sample.completion)

    def _score(self, sample: Sample, verdict: str | WorkerFailed) -> Scored:
        if isinstance(verdict, WorkerFailed):
            return unknown(sample, f"the parser: {verdict}")
        parts = {kind: float(verdict == kind) for kind in ("unparsable", "empty", "trivial", "repeated")}
        parsed = verdict == "good"
        if self._term.tests is None:
            return Scored(float(parsed), parts=parts)
        tests = sample.fields.get(self._term.tests)
        if not isinstance(tests, str) or not tests.strip():
            return unknown(
                sample, f"its field {self._term.tests} holds no Python to test with, but {tests!r:.80}"
            )
        if not parsed:
            return Scored(0.0, parts=parts)
        return self._run(sample, tests, parts)

    def _run(self, sample: Sample, tests: str, parts: dict[str, float]) -> Scored:
        process = LimitedProcess(RUN, "plain", self._term.worker)
        try:
            process.start()
        except WorkerFailed as error:  # before anything of the answer was run
            return unknown(sample, str(error))
        try:
            fault = process.call({"program": self._program(sample), "tests": tests})
        except WorkerFailed as error:
            fault = str(error)
        finally:
            process.close()
        return Scored(float(fault is None), parts={**parts, "failed": float(fault is not None)})


def open_reward(term: RewardTerm, _means: Means) -> PythonReward:
    return PythonReward(term)


def _given_to_several(samples: Sequence[Sample]) -> list[bool]:
    """Whether an answer was given, word for word, to another prompt of the batch, too: whatever fits all
    prompts answers none."""
    prompts: dict[str, set[str]] = {}
    for sample in samples:
        prompts.setdefault(sample.completion.strip(), set()).add(repr(sample.prompt))
    return [len(prompts[sample.completion.strip()]) > 1 for sample in samples]
