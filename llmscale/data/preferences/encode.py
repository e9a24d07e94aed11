"""Records of preferences -> groups of documents: the prompt with each of its answers.

Which tokens are the answer's is told as for conversations (`llmscale.data.chat.encode`): by the characters
that each token holds, never by a length of the prompt alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.chat.conversation import BadRecord, Message
from llmscale.data.chat.encode import ACROSS, Answered, ChatEncoder, Content, chat_encoder
from llmscale.data.encoding import Encoded, LeftOut
from llmscale.data.examples import Document, Example
from llmscale.data.preferences.records import Answer, Answers, is_compared, read_answers, read_judged
from llmscale.data.records import Record

TRUNCATED = "oldest turns of the prompt left out"
TWICE = "an answer that is there twice left out"


class _Group(NamedTuple):
    """A record as tokens: its different answers, each with the prompt before it."""

    answers: tuple[Answer, ...]
    documents: tuple[Example, ...]
    label: float | None
    notes: tuple[str, ...]


class PreferenceEncoder:
    """Makes groups of records, for `task: reward` and `task: dpo`.

    Args:
        chat: tells the tokens of answers.
    """

    def __init__(self, config: Config, chat: ChatEncoder) -> None:
        self.chat = chat
        self.options = config.preferences
        self.is_reward = config.task == "reward"
        self.is_paired_up = config.task == "dpo" and config.dpo.loss == "kto"
        """Each answer gets a second one, of another prompt."""
        self.judges_alone = self.is_paired_up or (self.is_reward and config.reward.loss == "outcome")
        self.with_margin = self.is_reward and config.reward.margin
        self.row = config.train.sequence_length
        self.placeholders = config.peft.placeholders
        self.seed = config.train.seed

    @property
    def key(self) -> Mapping[str, JsonValue]:
        chat = {name: value for name, value in self.chat.key.items() if name not in ("too_long", "longest")}
        return {
            **chat,
            "kind": "reward" if self.is_reward else "dpo",
            "judges_alone": self.judges_alone,
            "with_margin": self.with_margin,
            "too_long": self.options.too_long,
            "row": self.row,
            "placeholders": self.placeholders,
            "paired_up_by": self.seed if self.is_paired_up else None,
        }

    def encode(self, records: Sequence[Record], fields: Mapping[str, str]) -> list[Encoded | LeftOut]:
        """What becomes of each record."""
        found = [self._read(record, fields) for record in records]
        groups = iter(self._groups([one for one in found if isinstance(one, Answers)]))
        return [self._outcome(one, next(groups)) if isinstance(one, Answers) else one for one in found]

    def contents(self, record: Record, fields: Mapping[str, str]) -> list[Content]:
        """The prompt with each of the answers.

        Raises:
            BadRecord: nothing that can be used.
        """
        return [content for content, _ in self._answers(record, fields).contents()]

    def common(self, record: Record, fields: Mapping[str, str]) -> str | None:
        """The prompt: several records often are of one."""
        try:
            return json.dumps(self._answers(record, fields).prompt, sort_keys=True, default=str)
        except BadRecord:
            return None

    def _read(self, record: Record, fields: Mapping[str, str]) -> Answers | LeftOut:
        try:
            answers = self._answers(record, fields)
        except BadRecord as error:
            return LeftOut("bad", str(error))
        if answers.is_empty:
            return LeftOut("empty", "an answer says nothing")
        if answers.label is None and len(answers.answers) < 2:
            return LeftOut("identical", "no answer is better than another")
        return answers

    def _answers(self, record: Record, fields: Mapping[str, str]) -> Answers:
        # A right answer beside wrong ones needs no labels; only kto must have each for itself.
        is_group = not self.judges_alone or (self.is_reward and is_compared(record, fields))
        return read_answers(record, fields, self.with_margin) if is_group else read_judged(record, fields)

    def _groups(self, read: Sequence[Answers]) -> list[_Group | LeftOut]:
        """All of them are tokenised together."""
        told = iter(self.chat.answered([content for one in read for content in one.contents()]))
        return [_group(one, [next(told) for _ in one.answers]) for one in read]

    def _outcome(self, answers: Answers, group: _Group | LeftOut) -> Encoded | LeftOut:
        if isinstance(group, LeftOut):
            return group
        tokens = self._tokens(group)
        if tokens <= self.row:
            return self._encoded(group)
        shorter = self._cut(answers) if self.options.too_long == "truncate" else None
        if shorter is None:
            message = f"{tokens:,} tokens of prompt and answers together, where a row has {self.row:,}"
            return LeftOut("too_long", message)
        return self._encoded(shorter)

    def _tokens(self, group: _Group) -> int:
        """Tokens of a row that the group takes. The last of a document is a label only, but for a reward,
        which is told where that token is read. An answer to another prompt needs one token at least."""
        used = sum(len(one.tokens) - (not self.is_reward) + self.placeholders for one in group.documents)
        if self.is_paired_up:
            used += max(1, int(np.argmax(group.documents[0].learned))) + self.placeholders
        return used

    def _cut(self, answers: Answers) -> _Group | None:
        """The group with as many of the prompt's last turns as fit, from a user's on; what stands before the
        first of these (the system's) stays. Found by halving, since more turns are more tokens."""
        prompt = answers.prompt
        if isinstance(prompt, str):
            return None
        asked = [place for place, message in enumerate(prompt) if message["role"] == "user"]
        found, first, end = None, 1, len(asked)
        while first < end:
            middle = (first + end) // 2
            [group] = self._groups([replace(answers, prompt=_since(prompt, asked, middle))])
            if isinstance(group, _Group) and self._tokens(group) <= self.row:
                found, end = group, middle
            else:
                first = middle + 1
        return None if found is None else found._replace(notes=(*found.notes, TRUNCATED))

    def _encoded(self, group: _Group) -> Encoded:
        read = _laid_out(group, group.documents)
        if not self.is_reward:
            return Encoded(read, group.notes)
        return Encoded(_laid_out(group, [_scored(one) for one in group.documents]), group.notes, shown=read)


def _laid_out(group: _Group, documents: Sequence[Example]) -> Example:
    """The documents of a group end to end."""
    described = tuple(
        Document(len(one.tokens), answer.role, answer.margin)
        for one, answer in zip(documents, group.answers, strict=True)
    )
    tokens = np.concatenate([one.tokens for one in documents])
    return Example(tokens, np.concatenate([one.learned for one in documents]), group.label, described)


def _since(prompt: Sequence[Message], asked: Sequence[int], number: int) -> tuple[Message, ...]:
    return (*prompt[: asked[0]], *prompt[asked[number] :])


def _group(answers: Answers, told: Sequence[Answered | LeftOut]) -> _Group | LeftOut:
    kept: dict[bytes, tuple[Answer, Example]] = {}
    across = False
    for answer, one in zip(answers.answers, told):
        if isinstance(one, LeftOut):
            return one
        if not one.example.learned[1:].any():
            return LeftOut("nothing_learned", "no token is that of an answer")
        across |= one.across
        kept.setdefault(one.example.tokens.tobytes(), (answer, one.example))
    if len(kept) == 1 and len(told) > 1:
        return LeftOut("identical", "its answers are the same, token by token")
    notes = ((TWICE,) if len(kept) < len(told) else ()) + ((ACROSS,) if across else ())
    kept_answers, documents = zip(*kept.values())
    return _Group(kept_answers, documents, answers.label, notes)


def _scored(document: Example) -> Example:
    """One token more: it stands for what is to be told after the last one, and is never read."""
    learned = np.zeros(len(document.tokens) + 1, bool)
    learned[-1] = True
    return Example(np.append(document.tokens, np.int32(0)), learned)


def record_encoder(config: Config) -> PreferenceEncoder:
    """
    Raises:
        InputError: tokenizer or template cannot be used.
    """
    path = config.tokenizer.path
    if path is None:
        raise InputError([Problem("tokenizer.path", None, "set it: answers must become tokens")])
    return PreferenceEncoder(config, chat_encoder(config, path, config.train.sequence_length))
