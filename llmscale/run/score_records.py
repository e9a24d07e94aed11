"""Records of answers, what a reward model gives to each of them, and how often it agrees with the records."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from pydantic import JsonValue

from llmscale.data.chat.conversation import BadRecord
from llmscale.data.chat.encode import Answered, ChatEncoder
from llmscale.data.encoding import LeftOut
from llmscale.data.preferences.records import Answers, Said, is_compared, read_answers, read_judged
from llmscale.data.records import Record, Unreadable
from llmscale.run.reward_model import RewardModel

AT_A_TIME = 256
"""Records whose answers are dealt to batches by their length, so that little of these is padding."""


@dataclass(frozen=True)
class Scored:
    """A record whose answers have scores."""

    line: int
    answers: Answers
    scores: tuple[float, ...]

    def as_json(self) -> dict[str, JsonValue]:
        """Line, prompt, label where it has one, and the answers, the best first."""
        told: list[JsonValue] = [
            {"answer": _plain(answer.said), "role": answer.role, "score": score}
            for answer, score in zip(self.answers.answers, self.scores, strict=True)
        ]
        label = {} if self.answers.label is None else {"label": bool(self.answers.label)}
        return {"line": self.line, "prompt": _plain(self.answers.prompt), **label, "answers": told}


@dataclass
class Tally:
    """What the scores tell of the model, record by record."""

    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """Of each reason, what it was and where."""
    compared: int = 0
    right: float = 0.0
    """Records whose best answer has the highest score; of several others, the share of them below it."""
    margin: float = 0.0
    good: list[float] = field(default_factory=list)
    """Scores of answers with the label true."""
    bad: list[float] = field(default_factory=list)

    def add(self, line: int, found: Scored | LeftOut) -> None:
        self.records += 1
        if isinstance(found, LeftOut):
            self.left_out[found.reason] += 1
            self.first.setdefault(found.reason, f"line {line}: {found.message}")
            return
        best, *others = found.scores
        if found.answers.label is not None:
            (self.good if found.answers.label else self.bad).append(best)
        elif others:
            self.compared += 1
            self.right += sum(other < best for other in others) / len(others)
            self.margin += best - sum(others) / len(others)

    def rows(self) -> Iterator[tuple[str, str]]:
        """As a person reads them."""
        yield "records", f"{self.records:,}"
        if self.compared:
            yield "compared", f"{self.compared:,}"
            yield "accuracy", f"{self.right / self.compared:.1%}"
            yield "mean margin", f"{self.margin / self.compared:.4f}"
        for name, scores in (("right answers", self.good), ("wrong answers", self.bad)):
            if scores:
                yield name, f"{len(scores):,}, mean score {sum(scores) / len(scores):.4f}"
        if self.good and self.bad:
            told = sum(score > 0 for score in self.good) + sum(score <= 0 for score in self.bad)
            yield "on the right side of 0", f"{told / (len(self.good) + len(self.bad)):.1%}"
        for reason, count in self.left_out.items():
            yield f"left out, {reason.replace('_', ' ')}", f"{count:,} (first {self.first[reason]})"


@dataclass(frozen=True)
class RecordScorer:
    """Scores the answers of records, in their order."""

    model: RewardModel
    chat: ChatEncoder
    """Tells the tokens of answers."""
    fields: Mapping[str, str]
    """What those of a record are called, where it is not by the names of the task."""
    longest: int
    """Tokens of prompt and answer that the model takes; more are left out, none is cut."""
    batch: int
    """Answers that are scored at once."""

    def scored(
        self, records: Iterable[tuple[int, Record | Unreadable]]
    ) -> Iterator[tuple[int, Scored | LeftOut]]:
        """What becomes of each record, with its line."""
        remaining = iter(records)
        while part := list(islice(remaining, AT_A_TIME)):
            yield from self._part(part)

    def _part(
        self, part: Sequence[tuple[int, Record | Unreadable]]
    ) -> Iterator[tuple[int, Scored | LeftOut]]:
        read = [_read(record, self.fields) for _, record in part]
        told = iter(
            self.chat.answered(
                [one for found in read if isinstance(found, Answers) for one in found.contents()]
            )
        )
        texts = [
            self._texts([next(told) for _ in found.answers]) if isinstance(found, Answers) else found
            for found in read
        ]
        scores = iter(self._scores([one for found in texts if isinstance(found, list) for one in found]))
        for (line, _), answers, found in zip(part, read, texts):
            if isinstance(answers, Answers) and isinstance(found, list):
                yield line, Scored(line, answers, tuple(next(scores) for _ in found))
            elif isinstance(found, LeftOut):
                yield line, found

    def _texts(self, told: Sequence[Answered | LeftOut]) -> list[list[int]] | LeftOut:
        """Tokens of each answer with the prompt before it."""
        texts: list[list[int]] = []
        for one in told:
            if isinstance(one, LeftOut):
                return one
            texts.append(one.example.tokens.tolist())
        most = max(map(len, texts))
        if most > self.longest:
            message = f"{most:,} tokens of prompt and answer, and the model takes {self.longest:,}"
            return LeftOut("too_long", message)
        return texts

    def _scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """In the order of the texts; those of much the same length are scored together."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            told = self.model.scores([texts[place] for place in places])
            for place, score in zip(places, told, strict=True):
                scores[place] = score
        return scores


def _read(record: Record | Unreadable, fields: Mapping[str, str]) -> Answers | LeftOut:
    """Answers that are compared, or one that is judged or waits to be."""
    if isinstance(record, Unreadable):
        return LeftOut("bad", record.message)
    try:
        if is_compared(record, fields) or record.get(fields.get("responses", "responses")) is not None:
            return read_answers(record, fields, with_margin=False)
        label = fields.get("label", "label")
        if record.get(label) is not None:
            return read_judged(record, fields)
        return replace(read_judged({**record, label: 0}, fields), label=None)
    except BadRecord as error:
        return LeftOut("bad", str(error))


def _plain(said: Said) -> JsonValue:
    return said if isinstance(said, str) else [dict(message) for message in said]
