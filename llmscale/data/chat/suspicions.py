"""What is odd about conversations: nothing that must be wrong, all of it worth a look."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmscale.data.chat.conversation import BadRecord, Completion, Conversation
from llmscale.data.chat.encode import ChatEncoder, Content
from llmscale.data.chat.spell import says_something
from llmscale.data.examples import Example
from llmscale.data.tokenizer import open_encoder, special_token_ids

TURN_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{3,20}\]|<(?:start|end)_of_turn>")
"""What templates use as tokens."""


class Suspicions:
    """Looks at records and what became of them."""

    def __init__(self, encoder: ChatEncoder, tokenizer: Path | None) -> None:
        assert tokenizer is not None
        self._encoder = encoder
        self._tokenizer = open_encoder(tokenizer)
        self._bos = special_token_ids(tokenizer)["bos_token_id"]
        added = self._tokenizer.get_added_tokens_decoder().values()
        names = [re.escape(token.content) for token in added if token.special and token.content.strip()]
        self._special = re.compile("|".join(sorted(names, key=len, reverse=True)) or r"(?!)")
        self._counts: dict[str, int] = {}
        self._first: dict[str, int] = {}

    def look(self, line: int, contents: Sequence[Content], example: Example) -> None:
        """
        Args:
            contents: that the record in `line` holds.
            example: what became of it.
        """
        odd = [what for content in contents for what in self._odd(content)]
        ends = np.cumsum(example.lengths)
        parts = np.split(example.tokens, ends[:-1])
        for what in dict.fromkeys([*odd, *(what for tokens in parts for what in self._odd_tokens(tokens))]):
            self._counts[what] = self._counts.get(what, 0) + 1
            self._first.setdefault(what, line)

    def found(self) -> list[str]:
        told = [
            f"{what}: {times:,} records, the first in line {self._first[what]:,}"
            for what, times in self._counts.items()
        ]
        return [*self._unknown_marks(), *told]

    def _odd(self, content: Content) -> Iterator[str]:
        if isinstance(content, Conversation):
            for name in sorted(
                {name for text in _texts(content.messages) for name in self._special.findall(text)}
            ):
                yield f"the special token {name} stands in what is said, and is read as that token"
            answers = [message for message in content.messages if message["role"] == "assistant"]
            if not all(says_something(answer) for answer in answers):
                yield "a turn of the assistant is empty"
        if isinstance(content, Completion):
            around = content.prompt[-1:] + content.completion[:1]
            if content.prompt and not any(character.isspace() for character in around):
                yield "no white space is between prompt and completion"

    def _odd_tokens(self, tokens: np.ndarray) -> Iterator[str]:
        begin = tokens[:2].tolist()
        if self._bos is not None and begin == [self._bos, self._bos]:
            yield "BOS is there twice"
        if int(tokens[-1]) not in self._encoder.stops:
            yield "does not end with EOS, because it was cut"

    def _unknown_marks(self) -> Iterator[str]:
        chat = [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]
        try:
            text = self._encoder.template.render(chat).text
        except BadRecord:
            text = self._encoder.template.source
        for mark in dict.fromkeys(TURN_MARK.findall(text)):
            if self._tokenizer.token_to_id(mark) is None:
                pieces = len(self._tokenizer.encode(mark, add_special_tokens=False).ids)
                yield f"the chat template writes {mark}, which this tokenizer reads as {pieces} tokens"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _texts(inside)
    elif isinstance(value, (list, tuple)):
        for inside in value:
            yield from _texts(inside)
