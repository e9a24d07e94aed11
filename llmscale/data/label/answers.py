"""What was asked and answered: each answer stands in a file before anything is made of it.

The file is only ever appended to, and synced after each answer, so that a command that is killed has lost at
most what was under way. An answer is found by a hash of everything that it depends on: who was asked, with
which options, and what.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import JsonValue

from llmscale.config.problems import InputError, Problem
from llmscale.data.files import sync

Message = Mapping[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class Answer:
    text: str
    finish: str
    """`stop`, `length`, or what else the endpoint says."""
    prompt_tokens: int
    answer_tokens: int
    alternatives: Mapping[str, float] | None = None
    """Log-probabilities of the tokens that could stand where the verdict begins."""


@dataclass(frozen=True)
class Question:
    """One request."""

    key: str
    messages: tuple[Message, ...]


def question(respondent: JsonValue, messages: Sequence[Message], number: int = 0) -> Question:
    """
    Args:
        respondent: everything about who is asked that an answer depends on.
        number: of several answers to the same messages.
    """
    whole = json.dumps([respondent, [dict(message) for message in messages], number], sort_keys=True)
    return Question(hashlib.sha256(whole.encode()).hexdigest(), tuple(messages))


class Answers:
    """The answers in a file, and those that are added to it.

    Args:
        file: made where it is not there. A last line that was cut by a kill is taken off.

    Raises:
        InputError: another command is adding to it, or it is no such file.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        is_new = not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a+b")
        try:
            self._lock()
            self._found = self._read()
        except InputError:
            self._file.close()
            raise
        if is_new:
            sync(file.parent)

    def __enter__(self) -> "Answers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Answer:
        return self._found[key][1]

    def get(self, key: str) -> Answer | None:
        return self._found[key][1] if key in self._found else None

    def spent(self, purpose: str) -> tuple[int, int]:
        """Requests and tokens that its answers have cost."""
        answers = [answer for of, answer in self._found.values() if of == purpose]
        return len(answers), sum(answer.prompt_tokens + answer.answer_tokens for answer in answers)

    def add(self, purpose: str, answers: Iterable[tuple[str, Answer]]) -> None:
        """They are on disk when this returns."""
        added = list(answers)
        lines = [
            json.dumps({"key": key, "of": purpose, "answer": asdict(answer)}, ensure_ascii=False)
            for key, answer in added
        ]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._found.update({key: (purpose, answer) for key, answer in added})

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = "another command is labelling into this folder; wait for it, or choose another output"
            raise InputError([Problem("output", self._path.parent, message)]) from None

    def _read(self) -> dict[str, tuple[str, Answer]]:
        self._file.seek(0)
        found: dict[str, tuple[str, Answer]] = {}
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            key, purpose, answer = self._answer(number, line)
            found[key] = (purpose, answer)
            whole += len(line)
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)
        return found

    def _answer(self, number: int, line: bytes) -> tuple[str, str, Answer]:
        try:
            entry: dict[str, Any] = json.loads(line)
            return entry["key"], entry["of"], Answer(**entry["answer"])
        except (ValueError, KeyError, TypeError) as error:
            message = f"line {number} is no answer ({error!r}): move the file away, or take the line out"
            raise InputError([Problem("output", self._path, message)]) from None
