"""Which tokens of a text are learned, by the characters that they hold."""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from llmscale.data.chat.spell import Spelled
from llmscale.data.chat.template import Span


@dataclass(frozen=True)
class Tokenised:
    """A text as tokens: token i is `ids[i]` and holds the characters `starts[i]:ends[i]`. Tokens that share a
    character (bytes of it) all hold it."""

    text: str
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, text: str, encoding: Encoding) -> "Tokenised":
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return cls(text, np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1])

    def holding(self, span: Span) -> tuple[int, int]:
        """First token that holds a character of `span`, and the one after the last."""
        start, end = span
        stop = int(np.searchsorted(self.starts, end, side="left"))
        if start == end:
            return stop, stop
        return min(int(np.searchsorted(self.ends, start, side="right")), stop), stop

    def before_blanks(self, first: int, stop: int) -> int:
        """`stop` without the tokens before it, down to `first`, that hold nothing but white space."""
        while stop > first and not self.text[self.starts[stop - 1] : self.ends[stop - 1]].strip():
            stop -= 1
        return stop


def learned_tokens(spelled: Spelled, found: Tokenised, stops: Set[int]) -> list[tuple[int, int]]:
    """The tokens of each answer (first, one after the last), with the token of `stops` that ends it."""
    return [_with_its_end(spelled, found, span, stops) for span in spelled.answers]


def _with_its_end(spelled: Spelled, found: Tokenised, span: Span, stops: Set[int]) -> tuple[int, int]:
    first, stop = found.holding(span)
    if spelled.marked:
        # Some templates mark the words of an answer, but not the token after them.
        return (first, stop + 1) if stop < len(found.ids) and int(found.ids[stop]) in stops else (first, stop)
    ended = found.before_blanks(first, stop)
    return (first, ended) if has_ended(found, first, ended, stops) else (first, stop)


def has_ended(found: Tokenised, first: int, stop: int, stops: Set[int]) -> bool:
    """The last of the tokens from `first` to before `stop`, white space aside, is one of `stops`."""
    last = found.before_blanks(first, stop)
    return last > first and int(found.ids[last - 1]) in stops
