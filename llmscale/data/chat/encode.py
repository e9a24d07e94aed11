"""Records of conversations -> tokens, and which of them are learned.

The text of a record is tokenised whole, and the tokenizer's offsets tell which token holds which of its
characters: a token that holds one of an answer is learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue
from tokenizers import Encoding, Tokenizer

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.config.tuning import SftSection
from llmscale.data.chat.conversation import BadRecord, Completion, Conversation, Message, Text, read_record
from llmscale.data.chat.learned import Tokenised, has_ended, learned_tokens
from llmscale.data.chat.spell import Spelled, is_empty, places_of_answers, spell, until
from llmscale.data.chat.template import chat_options, chat_template
from llmscale.data.encoding import Encoded, LeftOut
from llmscale.data.examples import Example
from llmscale.data.records import Record
from llmscale.data.tokenizer import (
    adds_bos,
    end_of_document_id,
    open_encoder,
    special_token_ids,
    tokenizer_hash,
)

TRUNCATED = "cut to the sequence length"
UNANSWERED = "turns after the last answer left out"
UNANSWERING = "it has no turn of an assistant; sft.learn=all learns what others say"
UNLEARNED = "none of its tokens is learned; sft.learn=all learns every one"
ACROSS = "a token lies across the beginning of an answer"


Content = Conversation | Completion | Text


@dataclass(frozen=True)
class Answered:
    """A prompt with an answer to it, of any length."""

    example: Example
    """Of which the answer is learned."""
    across: bool
    """A token lies across the beginning of the answer."""


@dataclass(frozen=True)
class _Learnable:
    """A record on its way."""

    content: Content
    spelled: Spelled
    notes: tuple[str, ...] = ()


class ChatEncoder:
    """What becomes of records under the options of a run.

    Args:
        tokenizer: its folder.
        longest: tokens of an example, at most.
        key: section of the config that names the template.

    Raises:
        InputError: the tokenizer has no EOS, or the template cannot be used.
    """

    def __init__(self, tokenizer: Path, options: SftSection, longest: int, key: str = "sft") -> None:
        self.options = options
        self.longest = longest
        self.template = chat_template(tokenizer, options.chat_template, f"{key}.chat_template")
        self.end_of_text = end_of_document_id(tokenizer)
        bos = special_token_ids(tokenizer)["bos_token_id"]
        self._begin = [bos] if bos is not None and adds_bos(tokenizer) else []
        self._encoder_of_text = _encoder(tokenizer, special_tokens=False)
        self._encoder_of_template = _encoder(tokenizer, special_tokens=True)
        self.stops = {self.end_of_text, *self._end_of_turn()}
        """Tokens that end what an assistant says."""
        self._tokenizer_hash = tokenizer_hash(tokenizer)

    @property
    def key(self) -> dict[str, JsonValue]:
        return {
            "tokenizer": self._tokenizer_hash,
            "begin": [*self._begin],
            "stops": [*sorted(self.stops)],
            "template": self.template.source,
            "template_tokens": {**self.template.tokens},
            "learn": self.options.learn,
            "too_long": self.options.too_long,
            "longest": self.longest,
        }

    def encode(self, records: Sequence[Record], fields: Mapping[str, str]) -> list[Encoded | LeftOut]:
        """What becomes of each record."""
        found = [self._read(record, fields) for record in records]
        encodings = iter(self._tokenise([one.spelled for one in found if isinstance(one, _Learnable)]))
        return [self._outcome(one, next(encodings)) if isinstance(one, _Learnable) else one for one in found]

    def contents(self, record: Record, fields: Mapping[str, str]) -> list[Content]:
        """What the record holds.

        Raises:
            BadRecord: nothing that can be used.
        """
        return [read_record(record, fields)]

    def answered(self, asked: Sequence[tuple[Content, int]]) -> list[Answered | LeftOut]:
        """Prompts with their answers, whole.

        Args:
            asked: each with the number of messages of a conversation that are the prompt.
        """
        found = [self._asked(content, since) for content, since in asked]
        encodings = iter(self._tokenise([one for one in found if isinstance(one, Spelled)]))
        return [
            Answered(*self._example(one, next(encodings))) if isinstance(one, Spelled) else one
            for one in found
        ]

    def _asked(self, content: Content, since: int) -> Spelled | LeftOut:
        try:
            return spell(content, self.template, since)
        except BadRecord as error:
            return LeftOut("bad", str(error))

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The tokens that ask the assistant to answer `messages`.

        Raises:
            BadRecord: the template does not take them.
        """
        return self.rendered(self.template.render(messages, tools, ask=True).text)

    def rendered(self, text: str) -> list[int]:
        """The tokens of what a template has written, or of a part of it that begins with a special token."""
        return self._encoder_of_template.encode(text, add_special_tokens=False).ids

    def said(self, tokens: Sequence[int]) -> str:
        """The text of what a model wrote, without the token that ends it."""
        ids = [*tokens[:-1]] if tokens and tokens[-1] in self.stops else [*tokens]
        return self._encoder_of_template.decode(ids, skip_special_tokens=False)

    def plain(self, text: str) -> list[int]:
        """The tokens of a text that begins a document and that no template is put around."""
        return [*self._begin, *self._encoder_of_text.encode(text, add_special_tokens=False).ids]

    def _read(self, record: Record, fields: Mapping[str, str]) -> _Learnable | LeftOut:
        try:
            content = read_record(record, fields)
            if is_empty(content):
                return LeftOut("empty", "nothing is said in it")
            notes: tuple[str, ...] = ()
            if isinstance(content, Conversation):
                answers = places_of_answers(content)
                if not answers and self.options.learn != "all":
                    return LeftOut("nothing_learned", UNANSWERING)
                if answers and answers[-1] != len(content.messages) - 1:
                    content, notes = until(content, answers[-1]), (UNANSWERED,)
            return _Learnable(content, self._first_spelled(content), notes)
        except BadRecord as error:
            return LeftOut("bad", str(error))

    def _first_spelled(self, content: Content) -> Spelled:
        """With what tells its length: of a template without marks the last answer alone, because to find each
        takes two renderings, and of a long conversation most may be cut."""
        return self._spelled(content) if self.template.marks_answers else self._with_last(content)

    def _spelled(self, content: Content) -> Spelled:
        return self._with_last(content) if self.options.learn == "last" else spell(content, self.template)

    def _with_last(self, content: Content) -> Spelled:
        """With the last answer alone."""
        places = places_of_answers(content) if isinstance(content, Conversation) else []
        return spell(content, self.template, places[-1] if places else 0)

    def _tokenise(self, spelled: Sequence[Spelled]) -> list[Encoding]:
        """In the order given; both encoders work on many texts at once, on all cores."""
        encodings: dict[int, Encoding] = {}
        for of_template, encoder in ((True, self._encoder_of_template), (False, self._encoder_of_text)):
            places = [place for place, one in enumerate(spelled) if one.of_template == of_template]
            texts = [spelled[place].text for place in places]
            encodings |= zip(places, encoder.encode_batch(texts, add_special_tokens=False))
        return [encodings[place] for place in range(len(spelled))]

    def _outcome(self, one: _Learnable, encoding: Encoding) -> Encoded | LeftOut:
        try:
            return self._encoded(one, encoding)
        except BadRecord as error:
            return LeftOut("bad", str(error))

    def _encoded(self, one: _Learnable, encoding: Encoding) -> Encoded | LeftOut:
        """
        Raises:
            BadRecord: the template does not tell its answers.
        """
        content, spelled, notes = one.content, one.spelled, one.notes
        example, across = self._example(spelled, encoding)
        if len(example.tokens) > self.longest:
            shorter = self._cut(one, encoding) if self.options.too_long == "truncate" else None
            if shorter is None:
                message = f"{len(example.tokens):,} tokens, where an example has at most {self.longest:,}"
                return LeftOut("too_long", message)
            (content, spelled, encoding), notes = shorter, (*notes, TRUNCATED)
            example, across = self._example(spelled, encoding)
        if isinstance(content, Conversation) and not self.template.marks_answers:
            example, across = self._example(self._spelled(content), encoding)
        if isinstance(content, Text):
            example = Example(example.tokens[: self.longest], example.learned[: self.longest])
        if not example.learned[1:].any():
            return LeftOut("nothing_learned", UNLEARNED)
        return Encoded(example, (*notes, ACROSS) if across else notes)

    def _cut(self, one: _Learnable, encoding: Encoding) -> tuple[Content, Spelled, Encoding] | None:
        """What can be learned of a record that is too long: a plain text is cut anywhere, a conversation
        after the last answer that fits. That is found by halving, since more turns are more tokens."""
        if isinstance(one.content, Text):
            return one.content, one.spelled, encoding
        if not isinstance(one.content, Conversation):
            return None
        found = None
        places = places_of_answers(one.content)[:-1]
        first, end = 0, len(places)
        while first < end:
            middle = (first + end) // 2
            content = until(one.content, places[middle])
            spelled = self._first_spelled(content)
            tokenised = self._tokenise([spelled])[0]
            if len(self._example(spelled, tokenised)[0].tokens) <= self.longest:
                found, first = (content, spelled, tokenised), middle + 1
            else:
                end = middle
        return found

    def _example(self, spelled: Spelled, encoding: Encoding) -> tuple[Example, bool]:
        """The example, and whether a token lies across the beginning of an answer."""
        found = Tokenised.of(spelled.text, encoding)
        answers = learned_tokens(spelled, found, self.stops)
        end, learned = len(found.ids), np.zeros(len(found.ids), bool)
        for first, stop in answers:
            learned[first:stop] = True
        if self.options.learn == "all":
            learned[:] = True
        elif answers:  # after the last answer nothing is learned
            end = answers[-1][1]
        begin = [] if spelled.of_template else self._begin
        is_open = learned.any() and not (spelled.of_template and has_ended(found, 0, end, self.stops))
        finish = [self.end_of_text] if is_open else []
        tokens = np.concatenate((begin, found.ids[:end], finish))
        counts = np.concatenate((np.zeros(len(begin)), learned[:end], np.ones(len(finish))))
        across = any(
            first < stop and found.starts[first] < start
            for (first, stop), (start, _) in zip(answers, spelled.answers)
        )
        return Example(tokens.astype(np.int32), counts.astype(bool)), across

    def _end_of_turn(self) -> list[int]:
        """The token that the template writes after an answer, where it has one of its own."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = self.template.render(chat).text
        except BadRecord:  # it wants more than that, and its records tell
            return []
        found = Tokenised.of(text, self._encoder_of_template.encode(text, add_special_tokens=False))
        last = found.before_blanks(0, len(found.ids)) - 1
        added = self._encoder_of_template.get_added_tokens_decoder()
        return [token for token in found.ids[last : last + 1].tolist() if last >= 0 and token in added]


def record_encoder(config: Config) -> ChatEncoder:
    """For `task: sft`.

    Raises:
        InputError: tokenizer or template cannot be used.
    """
    path = config.tokenizer.path
    if path is None:
        raise InputError([Problem("tokenizer.path", None, "set it: conversations must become tokens")])
    return chat_encoder(config, path, config.train.sequence_length + 1 - config.peft.placeholders)


def chat_encoder(config: Config, tokenizer: Path, longest: int) -> ChatEncoder:
    """By the template that the run of `config` reads conversations by.

    Raises:
        InputError: tokenizer or template cannot be used.
    """
    options, section = chat_options(config)
    return ChatEncoder(tokenizer, options, longest, section)


def _encoder(tokenizer: Path, special_tokens: bool) -> Tokenizer:
    """
    Args:
        special_tokens: their names in a text are those tokens, not letters.
    """
    encoder = open_encoder(tokenizer)
    encoder.encode_special_tokens = not special_tokens
    # It would add BOS, which templates write themselves, and of some tokenizers take the white space at its
    # beginning from a token's characters.
    encoder.post_processor = None  # type: ignore[assignment]  # None takes it away
    return encoder
