"""`llmscale data label`: prompts to preferences, by a judge.

Answers are sampled where there are none, every two are judged, and only when every question has its answer
are the files made of what was answered: the same answers make the same files.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmscale.config.problems import InputError, Problem
from llmscale.data.label.answers import Answers, Question, question
from llmscale.data.label.ask import OnAnswers, ask_all
from llmscale.data.label.options import CandidatesSection, JudgeSection, LabelConfig
from llmscale.data.label.pairs import Judged, Pair, UnusableRecord, as_text, pairs_of, read_record
from llmscale.data.label.respondent import OpenRespondent, Respondent
from llmscale.data.label.results import Cost, LeftOut, Results
from llmscale.data.label.template import BadTemplate, JudgeTemplate
from llmscale.data.label.verdict import read_verdict, reconcile
from llmscale.data.records import Unreadable, record_source
from llmscale.data.sources import BadText

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Progress:
    """Hears how far the command has come."""

    sampled: OnAnswers
    judged: OnAnswers


def label(
    config: LabelConfig, open_respondent: OpenRespondent, stop: threading.Event, progress: Progress
) -> Results:
    """What the judge says of every pair.

    Raises:
        InputError: the records cannot be used. Unfinished: stopped, or the budget is spent.
        RespondentFailed: a model or endpoint gives no answers any more.
    """
    judged, left_out = _read(config)
    # Both before either is asked: what is wrong with the judge must not wait for paid candidates.
    words = config.judge.words if config.judge.log_probabilities else None
    judge = open_respondent(config.judge, words)
    sampler = open_respondent(config.candidates, None) if config.candidates else None
    results = Results(left_out=left_out, judge=judge.identity)
    with Answers(config.output / ANSWERS) as answers:
        labeller = _Labeller(config, results, stop, answers)
        if sampler is not None:
            judged = labeller.sample(sampler, judged, progress.sampled)
        labeller.judge(judge, labeller.pairs(judged), progress.judged)
        costs = {purpose: Cost(*answers.spent(purpose)) for purpose in ("candidates", "judge")}
    return replace(results, records=len(judged), costs=costs)


def _read(config: LabelConfig) -> tuple[list[Judged], list[LeftOut]]:
    """
    Raises:
        InputError: there is no record that can be used.
    """
    found: list[Judged] = []
    left_out: list[LeftOut] = []
    try:
        for line, record in record_source(config.records):
            try:
                if isinstance(record, Unreadable):
                    raise UnusableRecord(record.message)
                one = read_record(line, record, config.fields)
                if not one.responses and config.candidates is None:
                    raise UnusableRecord("has a prompt and no answers; a section `candidates` samples some")
                found.append(one)
            except UnusableRecord as error:
                left_out.append(LeftOut(line, str(error)))
    except (BadText, OSError) as error:
        raise InputError([Problem("records", config.records, str(error))]) from None
    if not found:
        first = f"; line {left_out[0].line} {left_out[0].reason}" if left_out else ""
        raise InputError([Problem("records", config.records, f"has no record that can be used{first}")])
    return found, left_out


class _Labeller:
    def __init__(
        self,
        config: LabelConfig,
        results: Results,
        stop: threading.Event,
        answers: Answers,
    ) -> None:
        self.results = results
        self._config = config
        self._stop = stop
        self._answers = answers

    def sample(self, sampler: Respondent, judged: Sequence[Judged], on_answers: OnAnswers) -> list[Judged]:
        """The records, those without answers with some of the model's."""
        section = self._config.candidates
        assert section is not None
        self.results.sampler = sampler.identity
        asked = {
            one.line: [
                question(sampler.identity, _sampling_messages(section, one.prompt), number)
                for number in range(section.count)
            ]
            for one in judged
            if not one.responses
        }
        everything = (one for questions in asked.values() for one in questions)
        refused = ask_all(sampler, section, everything, self._answers, "candidates", self._stop, on_answers)
        return [
            replace(one, responses=self._sampled(one, asked[one.line], refused)) if one.line in asked else one
            for one in judged
        ]

    def _sampled(self, judged: Judged, asked: Iterable[Question], refused: dict[str, str]) -> tuple[Any, ...]:
        """In the shape of the prompt: texts, or lists of one message."""
        texts: dict[str, None] = {}
        for one in asked:
            answer = self._answers.get(one.key)
            if answer is None:
                self.results.left_out.append(LeftOut(judged.line, f"a candidate: {refused[one.key]}"))
            elif not answer.text.strip():
                self.results.left_out.append(LeftOut(judged.line, "a candidate: nothing was said"))
            else:
                self.results.cut_candidates += answer.finish == "length"
                texts[answer.text] = None
        if isinstance(judged.prompt, str):
            return tuple(texts)
        return tuple([{"role": "assistant", "content": text}] for text in texts)

    def pairs(self, judged: Iterable[Judged]) -> list[Pair]:
        pairs: list[Pair] = []
        for one in judged:
            found = list(pairs_of(one))
            if not found:
                self.results.left_out.append(LeftOut(one.line, "has no two different answers"))
            pairs += found
        return pairs

    def judge(self, judge: Respondent, pairs: Sequence[Pair], on_answers: OnAnswers) -> None:
        section = self._config.judge
        asked: list[tuple[Pair, list[Question]]] = []
        for pair in pairs:
            try:
                messages = self._judging_messages(section, pair)
            except BadTemplate as error:
                self.results.left_out.append(LeftOut(pair.line, str(error)))
                continue
            asked.append((pair, [question(judge.identity, one) for one in messages]))
        everything = (one for _, questions in asked for one in questions)
        refused = ask_all(judge, section, everything, self._answers, "judge", self._stop, on_answers)
        for pair, questions in asked:
            self._settle(pair, questions, refused)

    def _judging_messages(self, section: JudgeSection, pair: Pair) -> list[list[dict[str, str]]]:
        """
        Raises:
            BadTemplate: the template does not take the pair.
        """
        principles = self._config.constitution
        if self._config.one_principle:
            principles = [principles[pair.draw % len(principles)]]
        template = JudgeTemplate(section.template, section.words.model_dump())
        prompt, a, b = as_text(pair.prompt), as_text(pair.a), as_text(pair.b)
        orders = [(a, b), (b, a)] if self._config.both_orders else [(a, b)]
        return [
            _messages(section.system, template.render(prompt, first, second, principles))
            for first, second in orders
        ]

    def _settle(self, pair: Pair, questions: Sequence[Question], refused: dict[str, str]) -> None:
        """What has been answered about a pair goes where it belongs."""
        verdicts = []
        for one in questions:
            answer = self._answers.get(one.key)
            if answer is None:
                self.results.left_out.append(LeftOut(pair.line, f"the judge: {refused[one.key]}"))
                return
            verdict = read_verdict(answer, self._config.judge.words)
            if verdict is None:
                brief = " ".join(answer.text.split())[-80:]
                reason = f"the judge named none of its words where the verdict should be: {brief!r}"
                self.results.left_out.append(LeftOut(pair.line, reason))
                return
            verdicts.append(verdict)
        self.results.outcomes.append((pair, reconcile(verdicts, self._config)))


def _sampling_messages(section: CandidatesSection, prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return _messages(section.system, prompt)
    said = [{"role": str(one.get("role", "user")), "content": one["content"]} for one in prompt]
    has_system = said[0]["role"] in ("system", "developer")
    return said if section.system is None or has_system else [*_messages(section.system, None), *said]


def _messages(system: str | None, user: str | None) -> list[dict[str, str]]:
    said = [("system", system), ("user", user)]
    return [{"role": role, "content": content} for role, content in said if content is not None]
