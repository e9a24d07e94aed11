"""What a record of preferences holds: answers to one prompt, compared with each other or judged alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from llmscale.data.chat.conversation import (
    BadRecord,
    Completion,
    Conversation,
    Message,
    messages_of,
    tools_of,
)
from llmscale.data.chat.spell import is_empty
from llmscale.data.records import Record

FIELDS = ("tools", "prompt", "instruction", "chosen", "rejected", "responses", "ranks", "margin")
FIELDS_ALONE = ("messages", "tools", "prompt", "instruction", "completion", "label")

Said = str | tuple[Message, ...]
"""A prompt or an answer."""


@dataclass(frozen=True)
class Answer:
    said: Said
    role: int
    """As `Batch.role_BL`."""
    margin: float = 0.0


@dataclass(frozen=True)
class Answers:
    """A prompt, and answers to it: the best first. All are texts, or all are messages."""

    prompt: Said
    answers: tuple[Answer, ...]
    tools: Sequence[Mapping[str, Any]] | None = None
    label: float | None = None
    """Of the only answer: it is right (1) or not (0)."""

    def contents(self) -> list[tuple[Completion | Conversation, int]]:
        """Each answer after the prompt, with the number of messages that are the prompt."""
        since = 0 if isinstance(self.prompt, str) else len(self.prompt)
        return [(_joined(self.prompt, answer.said, self.tools), since) for answer in self.answers]

    @property
    def is_empty(self) -> bool:
        """An answer says nothing."""
        nothing: tuple[Message, ...] = ()
        return any(
            is_empty(Completion("", answer.said))
            if isinstance(answer.said, str)
            else is_empty(_joined(nothing, answer.said, None))
            for answer in self.answers
        )


def _joined(prompt: Said, said: Said, tools: Sequence[Mapping[str, Any]] | None) -> Completion | Conversation:
    if isinstance(prompt, str) and isinstance(said, str):
        return Completion(prompt, said)
    assert not isinstance(prompt, str) and not isinstance(said, str)
    return Conversation((*prompt, *said), tools)


def read_answers(record: Record, fields: Mapping[str, str], with_margin: bool) -> Answers:
    """Answers that are compared: `chosen` and `rejected` (one or several), after `prompt` (or `instruction`)
    or what they begin with alike; or `prompt` and `responses`, the best first or with `ranks`.

    Args:
        fields: what those fields are called in the record, where it is not by these names.
        with_margin: `margin` must say by how much the best is better.

    Raises:
        BadRecord: none of them is there, or what is there is not what it should be.
    """
    found = _found(FIELDS, record, fields)
    tools = tools_of(found["tools"])
    if found["chosen"] is not None and found["rejected"] is not None:
        prompt, said = _compared(found["prompt"], found["chosen"], found["rejected"])
        roles = [0, *[1] * (len(said) - 1)]
        margins = [0.0, *_margins(found["margin"], with_margin, len(said) - 1)]
    elif found["prompt"] is not None and found["responses"] is not None:
        prompt, said = _prompted(found["prompt"], _several("responses", found["responses"]), "responses")
        roles = _roles(found["ranks"], len(said))
        margins = _margins(found["margin"], with_margin, len(said))
    else:
        raise BadRecord(
            f"has the fields {', '.join(record) or '(none)'}: neither chosen and rejected, nor prompt and "
            "responses; data.train[].fields says what they are called"
        )
    answers = (Answer(*one) for one in zip(said, roles, margins))
    return Answers(prompt, _best_first(answers), tools)


def is_compared(record: Record, fields: Mapping[str, str]) -> bool:
    """It has answers that are better and worse, and no label."""
    has = {name: record.get(fields.get(name, name)) is not None for name in ("chosen", "rejected", "label")}
    return has["chosen"] and has["rejected"] and not has["label"]


def read_judged(record: Record, fields: Mapping[str, str]) -> Answers:
    """An answer that is judged alone: `prompt` and `completion`, or `messages` of which the last is the
    answer, with a `label` that is true or false.

    Raises:
        BadRecord: as `read_answers`.
    """
    found = _found(FIELDS_ALONE, record, fields)
    if found["label"] is None or (
        found["messages"] is None and None in (found["prompt"], found["completion"])
    ):
        raise BadRecord(
            f"has the fields {', '.join(record) or '(none)'}: not prompt, completion and label (or messages "
            "and label); data.train[].fields says what they are called"
        )
    if found["messages"] is not None:
        messages = _until_answer("messages", found["messages"])
        prompt, said = messages[:-1], messages[-1:]
    else:
        prompt, (said,) = _prompted(found["prompt"], [found["completion"]], "completion")
    label = found["label"]
    if label not in (0, 1):
        raise BadRecord(f"label is {label!r}, and must be true or false (or 1 or 0)")
    return Answers(prompt, (Answer(said, 0),), tools_of(found["tools"]), float(label))


def _found(names: Iterable[str], record: Record, fields: Mapping[str, str]) -> dict[str, Any]:
    """An instruction is a prompt that a user says."""
    found = {name: record.get(fields.get(name, name)) for name in names}
    if found["prompt"] is None and found["instruction"] is not None:
        if not isinstance(found["instruction"], str):
            raise BadRecord("instruction is no text")
        found["prompt"] = [{"role": "user", "content": found["instruction"]}]
    return found


def _compared(prompt: Any, chosen: Any, rejected: Any) -> tuple[Said, list[Said]]:
    others = _several("rejected", rejected)
    given = [chosen, *others]
    are_texts = all(isinstance(one, str) for one in given)
    if prompt is None and are_texts:
        return _split_texts(given)
    if are_texts or not _begins_otherwise(given):
        if prompt is None:
            raise BadRecord("has no prompt, and chosen and rejected begin with the answer")
        return _prompted(prompt, given, "chosen or rejected")
    # Whole conversations; a prompt beside them says once more what they begin with.
    return _split_conversations([_until_answer("chosen or rejected", one) for one in given])


def _begins_otherwise(given: Sequence[Any]) -> bool:
    """The answers begin with a turn that is not the assistant's."""
    first = (one[0] for one in given if isinstance(one, Sequence) and one and not isinstance(one, str))
    return any(isinstance(message, Mapping) and message.get("role") != "assistant" for message in first)


def _prompted(prompt: Any, given: Sequence[Any], name: str) -> tuple[Said, list[Said]]:
    """Prompt and answers as texts, or all as messages where one of them is."""
    if isinstance(prompt, str) and all(isinstance(one, str) for one in given):
        return prompt, [*given]
    asked = (
        ({"role": "user", "content": prompt},) if isinstance(prompt, str) else messages_of("prompt", prompt)
    )
    return asked, [
        ({"role": "assistant", "content": one},) if isinstance(one, str) else _until_answer(name, one)
        for one in given
    ]


def _several(name: str, value: Any) -> list[Any]:
    """Texts, or lists of messages; one of them is as good as a list of one."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or not value:
        raise BadRecord(f"{name} is neither a text nor a list")
    return [value] if isinstance(value[0], Mapping) else [*value]


def _until_answer(name: str, value: Any) -> tuple[Message, ...]:
    messages = messages_of(name, value)
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise BadRecord(f"{name} has no turn of an assistant")
    return messages[: answers[-1] + 1]


def _split_conversations(given: Sequence[tuple[Message, ...]]) -> tuple[Said, list[Said]]:
    """What they begin with alike, and the answers, each of which begins with a turn of the assistant."""
    alike = len([*takewhile(lambda turns: all(turn == turns[0] for turn in turns), zip(*given))])
    shared = min(alike, *(len(one) - 1 for one in given))
    while shared and any(one[shared]["role"] != "assistant" for one in given):
        shared -= 1
    if not shared:
        raise BadRecord("chosen and rejected answer different prompts, for they do not begin alike")
    return given[0][:shared], [one[shared:] for one in given]


def _split_texts(given: Sequence[str]) -> tuple[Said, list[Said]]:
    """What they begin with alike, until the last white space."""
    alike = len([*takewhile(lambda letters: len({*letters}) == 1, zip(*given))])
    shared = given[0][:alike]
    begun = "" if not shared or shared[-1].isspace() else shared.split()[-1]
    prompt = shared.removesuffix(begun).rstrip()
    if not prompt:
        raise BadRecord("has no prompt, and chosen and rejected do not begin alike")
    return prompt, [one[len(prompt) :] for one in given]


def _roles(ranks: Any, count: int) -> list[int]:
    """From ranks, of which the lowest is the best, or from the order."""
    if ranks is None:
        return [*range(count)]
    if not isinstance(ranks, Sequence) or len(ranks) != count or not all(map(_is_number, ranks)):
        raise BadRecord(f"ranks is no list of {count} numbers, one for each of responses")
    places = sorted({*ranks})
    return [places.index(rank) for rank in ranks]


def _margins(margin: Any, needed: bool, count: int) -> list[float]:
    """One of each answer that is not the best."""
    if margin is None:
        if needed:
            raise BadRecord("has no margin, which reward.margin asks for")
        return [0.0] * count
    margins = [margin] * count if _is_number(margin) else margin
    if not isinstance(margins, Sequence) or len(margins) != count or not all(map(_is_number, margins)):
        raise BadRecord(f"margin is neither a number nor a list of {count} numbers")
    return [float(one) for one in margins]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _best_first(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """In the order of their roles; of several that are best only the first stays."""
    best, *others = sorted(answers, key=lambda answer: answer.role)
    worse = (answer for answer in others if answer.role > 0)
    return replace(best, margin=0.0), *worse
