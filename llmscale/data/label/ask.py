"""Every question without an answer is asked, several at a time, until all have one or something ends it."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from llmscale.config.endpoint import EndpointSection, LimitsSection
from llmscale.data.label.answers import Answer, Answers, Question
from llmscale.data.label.endpoint import expected_tokens
from llmscale.data.label.pace import Stopped
from llmscale.data.label.respondent import Refused, Respondent, RespondentFailed

ALL_REFUSED = 5
"""So many refusals and no answer: the fault is not the questions'."""

OnAnswers = Callable[[int, int], None]
"""Called with the questions that are settled, of how many."""


class Unfinished(Exception):
    """Stopped with what there is; the same command goes on from there. The message says why."""


class Budget:
    """What may still be asked.

    Args:
        requests, tokens: spent before.
    """

    def __init__(self, limits: LimitsSection, max_tokens: int, requests: int, tokens: int) -> None:
        self._limits = limits
        self._max_tokens = max_tokens
        self._requests = requests
        self._tokens = tokens

    def take(self, question: Question) -> None:
        """Put aside what `question` will cost.

        Raises:
            Unfinished: that is more than is left.
        """
        tokens = expected_tokens(question, self._max_tokens)
        if self._limits.requests is not None and self._requests + 1 > self._limits.requests:
            raise Unfinished(f"the budget of {self._limits.requests:,} requests is spent")
        if self._limits.tokens is not None and self._tokens + tokens > self._limits.tokens:
            left = f"{self._tokens:,} of the budget of {self._limits.tokens:,} tokens are spent"
            raise Unfinished(f"{left}, and the next request may cost {tokens:,}")
        self._requests += 1
        self._tokens += tokens

    def settle(self, question: Question, answer: Answer | Refused) -> None:
        """It has cost that in truth."""
        expected = expected_tokens(question, self._max_tokens)
        if isinstance(answer, Refused):
            self._requests -= 1
            self._tokens -= expected
        else:
            self._tokens += answer.prompt_tokens + answer.answer_tokens - expected


def ask_all(
    respondent: Respondent,
    section: EndpointSection,
    questions: Iterable[Question],
    answers: Answers,
    purpose: str,
    stop: threading.Event,
    on_answers: OnAnswers,
) -> dict[str, str]:
    """Have every question answered that is not; equal ones are asked once. Returns why some are refused, by
    their keys.

    Raises:
        Unfinished: stopped, or the budget is spent. RespondentFailed: it gives no answers any more. What has
            been answered is kept in either case.
    """
    unique = {one.key: one for one in questions}
    missing = [one for key, one in unique.items() if key not in answers]
    asking = _Asking(respondent, answers, purpose, stop, len(unique) - len(missing))
    asking.on_answers = lambda: on_answers(asking.settled, len(unique))
    asking.on_answers()
    if missing:
        budget = Budget(section.limits, section.max_tokens, *answers.spent(purpose))
        with respondent.opened(), ThreadPoolExecutor(respondent.at_a_time) as threads:
            asking.run(iter(missing), budget, threads)
    return asking.refused


class _Asking:
    """The questions that are under way.

    Args:
        answered: those that had their answer before.
    """

    def __init__(
        self, respondent: Respondent, answers: Answers, purpose: str, stop: threading.Event, answered: int
    ) -> None:
        self.refused: dict[str, str] = {}
        self.on_answers: Callable[[], None] = lambda: None
        self._respondent = respondent
        self._answers = answers
        self._purpose = purpose
        self._stop = stop
        self._answered = answered
        self._under_way: dict[Future[list[Answer | Refused]], list[Question]] = {}
        self._end: Unfinished | RespondentFailed | None = None

    @property
    def settled(self) -> int:
        return self._answered + len(self.refused)

    def run(self, questions: Iterator[Question], budget: Budget, threads: ThreadPoolExecutor) -> None:
        """
        Raises:
            Unfinished, RespondentFailed: when what was under way has been kept.
        """
        while True:
            while self._end is None and len(self._under_way) < self._respondent.at_a_time:
                batch = self._take(questions, budget)
                if not batch:
                    break
                self._under_way[threads.submit(self._respondent.answer, batch)] = batch
            if not self._under_way:
                break
            # Not for ever: a signal sets `stop`, and the main thread must come by to see it.
            done, _ = wait(self._under_way, timeout=0.2, return_when=FIRST_COMPLETED)
            self._keep(done, budget)
        if self._end is not None:
            raise self._end

    def _take(self, questions: Iterator[Question], budget: Budget) -> list[Question]:
        """The next questions that the budget has room for."""
        taken: list[Question] = []
        try:
            if self._stop.is_set():
                raise Unfinished("stopped")
            for question in islice(questions, self._respondent.batch):
                budget.take(question)
                taken.append(question)
        except Unfinished as end:
            self._end = end
        return taken

    def _keep(self, done: Iterable[Future[list[Answer | Refused]]], budget: Budget) -> None:
        kept: list[tuple[str, Answer]] = []
        for future in done:
            questions = self._under_way.pop(future)
            try:
                found = future.result()
            except Stopped:
                self._end = self._end or Unfinished("stopped")
                continue
            except RespondentFailed as error:
                self._end = error
                continue
            for question, answer in zip(questions, found, strict=True):
                budget.settle(question, answer)
                if isinstance(answer, Refused):
                    self.refused[question.key] = answer.message
                else:
                    kept.append((question.key, answer))
        if kept:
            self._answers.add(self._purpose, kept)
        self._answered += len(kept)
        if self._answered == 0 and len(self.refused) >= ALL_REFUSED and self._end is None:
            message = next(iter(self.refused.values()))
            self._end = RespondentFailed(f"every one of {len(self.refused)} questions was refused: {message}")
        self.on_answers()
