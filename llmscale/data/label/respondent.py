"""Who answers questions: what an endpoint and a model here have in common."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from llmscale.data.label.answers import Answer, Question
from llmscale.data.label.options import RespondentSection, WordsSection


class RespondentFailed(Exception):
    """It gives no answers any more; the message says why."""


@dataclass(frozen=True)
class Refused:
    """This one question is not answered, whenever it is asked."""

    message: str


class Respondent(Protocol):
    @property
    def identity(self) -> JsonValue:
        """Everything about it that an answer depends on, and no key."""
        ...

    @property
    def at_a_time(self) -> int:
        """Calls of `answer` that may be under way at a time, in threads."""
        ...

    @property
    def batch(self) -> int:
        """Questions of a call."""
        ...

    def opened(self) -> AbstractContextManager[None]:
        """Within it questions are answered."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[Answer | Refused]:
        """
        Raises:
            RespondentFailed, Stopped
        """
        ...


OpenRespondent = Callable[[RespondentSection, WordsSection | None], Respondent]
"""Of a section; with the words of a verdict, whose log-probabilities are wanted."""
