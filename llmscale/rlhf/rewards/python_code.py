"""1 for an answer that is Python which does something and passes its tests, 0 for any other."""

import re
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
        self._running: set[LimitedProcess] = set()
        self._stopped = False

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        if not samples:
            return []
        with ThreadPoolExecutor(self._term.worker.count) as threads:
            found = threads.map(self._score, samples, self._verdicts(samples), self._faults_of_tests(samples))
            return [*found]

    def stop(self) -> None:
        self._stopped = True
        for process in (self._parser, *self._running):
            process.stop()

    def close(self) -> None:
        self._parser.close()

    def _verdicts(self, samples: Sequence[Sample]) -> list[str | WorkerFailed]:
        found = self._parsed([self._program(sample) for sample in samples])
        if self._term.tests is not None:  # which are of one prompt alone
            return found
        copied = _given_to_several(samples)
        return ["repeated" if is_copied else one for one, is_copied in zip(found, copied)]

    def _faults_of_tests(self, samples: Sequence[Sample]) -> list[str | None]:
        """What is wrong with the tests of each record: a right answer must not get a 0 for it."""
        if self._term.tests is None:
            return [None] * len(samples)
        tests = [sample.fields.get(self._term.tests) for sample in samples]
        found = self._parsed([one if isinstance(one, str) else "" for one in tests])
        return [
            f"its field {self._term.tests} holds no Python to test with, but {one!r:.80}"
            if verdict in ("empty", "unparsable")
            else None
            for one, verdict in zip(tests, found)
        ]

    def _parsed(self, programs: Sequence[str]) -> list[str | WorkerFailed]:
        """The verdicts on programs, or why there is none; one at a time if they bring the parser down."""
        try:
            return self._parser.call({"programs": programs})
        except WorkerFailed:
            return [self._verdict(program) for program in programs]

    def _verdict(self, program: str) -> str | WorkerFailed:
        try:
            return self._parser.call({"programs": [program]})[0]
        except WorkerFailed as error:
            return error

    def _program(self, sample: Sample) -> str:
        if self._term.with_prompt and isinstance(sample.prompt, str):
            return sample.prompt + sample.completion
        return program_of(sample.completion)

    def _score(self, sample: Sample, verdict: str | WorkerFailed, fault_of_tests: str | None) -> Scored:
        if fault_of_tests is not None:
            return unknown(sample, fault_of_tests)
        if isinstance(verdict, WorkerFailed):
            return unknown(sample, f"the parser: {verdict}")
        parts = {kind: float(verdict == kind) for kind in ("unparsable", "empty", "trivial", "repeated")}
        if self._term.tests is None or verdict != "good":
            return Scored(float(verdict == "good"), parts=parts)
        return self._run(sample, sample.fields[self._term.tests], parts)

    def _run(self, sample: Sample, tests: str, parts: dict[str, float]) -> Scored:
        process = LimitedProcess(RUN, "plain", self._term.worker)
        self._running.add(process)
        if self._stopped:
            process.stop()
        try:
            process.start()
            fault = self._fault(process, {"program": self._program(sample), "tests": tests})
        except WorkerFailed as error:  # before anything of the answer was run
            return unknown(sample, str(error))
        finally:
            process.close()
            self._running.remove(process)
        if self._stopped:
            return unknown(sample, "stopped")
        return Scored(float(fault is None), parts={**parts, "failed": float(fault is not None)})

    def _fault(self, process: LimitedProcess, arguments: dict[str, str]) -> str | None:
        """What is wrong with a program; if it brings its process down, that."""
        try:
            return process.call(arguments)
        except WorkerFailed as error:
            return str(error)


def open_reward(term: RewardTerm, _means: Means) -> PythonReward:
    return PythonReward(term)


def _given_to_several(samples: Sequence[Sample]) -> list[bool]:
    """Whether an answer was given, word for word, to another prompt of the batch, too: whatever fits all
    prompts answers none."""
    codes = [_without_comments(sample.completion) for sample in samples]
    prompts: dict[str, set[str]] = {}
    for code, sample in zip(codes, samples):
        prompts.setdefault(code, set()).add(repr(sample.prompt))
    return [len(prompts[code]) > 1 for code in codes]


def _without_comments(answer: str) -> str:
    """To compare answers by: what differs in comments and blanks alone is the same."""
    return " ".join(re.sub(r"#[^\n]*", "", answer).split())
