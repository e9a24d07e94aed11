"""From records to the pairs of answers that are judged."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from llmscale.data.chat.conversation import BadRecord, Message
from llmscale.data.label.verdict import Winner
from llmscale.data.preferences.records import Said, read_answers
from llmscale.data.records import Record

SWAPPED: dict[Winner, Winner] = {"a": "b", "b": "a", "tie": "tie"}

NAMES = ("prompt", "instruction", "messages", "chosen", "rejected", "responses", "ranks")


class UnusableRecord(ValueError):
    """The message says why."""


@dataclass(frozen=True)
class Judged:
    """A record on its way: a prompt and the answers to it."""

    line: int
    prompt: Any
    """As the record has it: a text or a list of messages."""
    responses: tuple[Any, ...]
    """As the record has them; empty: they are to be sampled."""
    ranks: tuple[float, ...] | None
    """A human's, the lowest is the best; None: nobody has judged them."""


@dataclass(frozen=True)
class Pair:
    """Two answers, in an order that says nothing about which is better."""

    line: int
    prompt: Any
    a: Any
    b: Any
    human: Winner | None
    draw: int
    """A random number that belongs to this pair and to no run."""


def read_record(line: int, record: Record, fields: Mapping[str, str]) -> Judged:
    """
    Raises:
        UnusableRecord: it has no prompt, or answers that are none.
    """
    found = {name: record.get(fields.get(name, name)) for name in NAMES}
    if found["responses"] is None and found["chosen"] is not None and found["rejected"] is not None:
        prompt, responses = _compared(record, fields, found)
        ranks: Any = [0, 1]
    else:
        prompt, responses = _prompt(found), [] if found["responses"] is None else found["responses"]
        ranks = found["ranks"]
    if not isinstance(responses, list):
        raise UnusableRecord("responses is no list")
    for text in (prompt, *responses):
        as_text(text)
    return Judged(line, prompt, tuple(responses), _ranks(ranks, len(responses)))


def _compared(record: Record, fields: Mapping[str, str], found: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The prompt, the chosen and the rejected answer: texts stay texts, and of conversations only the
    beginning that both have is the prompt."""
    given = [found[name] for name in ("prompt", "chosen", "rejected")]
    if all(isinstance(one, str) for one in given):
        return given[0], given[1:]
    try:
        answers = read_answers(record, fields, with_margin=False)
    except BadRecord as error:
        raise UnusableRecord(str(error)) from None
    if len(answers.answers) > 2:
        message = "has several rejected answers; as a list in `responses` every two of them are compared"
        raise UnusableRecord(message)
    prompt, *responses = (
        _as_written(said) for said in (answers.prompt, *(one.said for one in answers.answers))
    )
    return prompt, responses


def _as_written(said: Said) -> str | list[Message]:
    return said if isinstance(said, str) else list(said)


def _prompt(found: Mapping[str, Any]) -> Any:
    """An instruction is what a user says."""
    if found["prompt"] is not None:
        return found["prompt"]
    if isinstance(found["instruction"], str):
        return [{"role": "user", "content": found["instruction"]}]
    if found["messages"] is not None:
        raise UnusableRecord(
            "has messages and no prompt: where they end with what a user says, fields={prompt: messages} "
            "makes them one; where they end with an answer, there is nothing to compare it with"
        )
    raise UnusableRecord("has no prompt; `fields` says what it is called")


def pairs_of(judged: Judged) -> Iterator[Pair]:
    """Every two different answers, the two in an order drawn by a hash of them."""
    for (first, one), (second, other) in combinations(enumerate(judged.responses), 2):
        if as_text(one).strip() == as_text(other).strip():
            continue
        human: Winner | None = None
        if judged.ranks is not None:
            difference = judged.ranks[first] - judged.ranks[second]
            human = "tie" if difference == 0 else "a" if difference < 0 else "b"
        digests = [_digest(judged.prompt, answer) for answer in (one, other)]
        if digests[0] > digests[1]:
            one, other = other, one
            human = SWAPPED[human] if human else None
        draw = int(_digest(*sorted(digests))[:15], 16)
        yield Pair(judged.line, judged.prompt, one, other, human, draw)


def as_text(content: Any) -> str:
    """A text, or a list of messages as one: a conversation names its speakers, an answer alone does not.

    Raises:
        UnusableRecord: it is neither.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not content:
        raise UnusableRecord("prompts and answers are texts or lists of messages")
    for message in content:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise UnusableRecord("has a message whose content is no text")
    if len(content) == 1:
        return content[0]["content"]
    return "\n\n".join(f"{message.get('role', 'user')}: {message['content']}" for message in content)


def _ranks(ranks: Any, count: int) -> tuple[float, ...] | None:
    if ranks is None:
        return None
    if not isinstance(ranks, list) or len(ranks) != count or not all(map(_is_number, ranks)):
        raise UnusableRecord("ranks is no list of numbers, one for each of responses")
    return tuple(float(rank) for rank in ranks)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
