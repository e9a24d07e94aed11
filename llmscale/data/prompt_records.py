"""Records that ask something, and the tokens that ask it. Without torch.

A record has its prompt in `messages`, `prompt`, `instruction` (with or without `input`) or `question`; what
else it has is kept for those who judge the answers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.chat.conversation import BadRecord, Message, messages_of, tools_of
from llmscale.data.chat.encode import ChatEncoder, chat_encoder
from llmscale.data.records import Record

KEYS = ("messages", "prompt", "instruction", "input", "question", "tools")
"""Fields of a record that a prompt is made of; the others are kept."""


@dataclass(frozen=True)
class Prompt:
    said: str | tuple[Message, ...]
    """As the record has it: a text, or what was said so far."""
    tokens: tuple[int, ...]
    """That ask for the answer."""
    record: str
    """Where it stands, for messages: `my/prompts.jsonl, line 3`."""
    fields: Mapping[str, Any]
    """The record's other fields."""


@dataclass(frozen=True)
class Asked:
    """What a record asks, before it is tokens."""

    said: str | tuple[Message, ...]
    tools: Sequence[Mapping[str, Any]] | None
    fields: Mapping[str, Any]

    @property
    def messages(self) -> tuple[Message, ...]:
        """A text is what a user says."""
        return ({"role": "user", "content": self.said},) if isinstance(self.said, str) else self.said


class PromptReader:
    """Records -> prompts.

    Args:
        encoder: with the template that asks.
        longest: tokens of a prompt, at most.
        as_text: a prompt that is a text is the beginning of a document, without a template: for models that
            go on with texts.
    """

    def __init__(self, encoder: ChatEncoder, longest: int, as_text: bool = False) -> None:
        self.encoder = encoder
        self.longest = longest
        self.as_text = as_text

    def common(self, record: Record, fields: Mapping[str, str]) -> str | None:
        """The prompt, which must not be in two splits."""
        try:
            asked = read_prompt(record, fields)
        except BadRecord:
            return None
        return json.dumps([asked.messages, asked.tools], sort_keys=True, default=str)

    def read(self, record: Record, fields: Mapping[str, str], place: str) -> Prompt:
        """
        Raises:
            BadRecord: it asks nothing that can be used.
        """
        asked = read_prompt(record, fields)
        return Prompt(asked.said, tuple(self._tokens(asked)), place, asked.fields)

    def _tokens(self, asked: Asked) -> list[int]:
        if self.as_text and isinstance(asked.said, str):
            return self.encoder.plain(asked.said)
        return self.encoder.prompt(asked.messages, asked.tools)


def read_prompt(record: Record, fields: Mapping[str, str]) -> Asked:
    """What a record asks. Answers at the end of its messages are taken off.

    Args:
        fields: what the fields are called in the record, where it is not by their names.

    Raises:
        BadRecord: nothing.
    """
    called = {key: fields.get(key, key) for key in KEYS}
    found = {key: record.get(name) for key, name in called.items()}
    said = _said(found)
    if said is None:
        raise BadRecord(
            f"has the fields {', '.join(record) or '(none)'}: none of messages, prompt, instruction or "
            "question; data.train[].fields says what they are called"
        )
    others = {name: value for name, value in record.items() if name not in called.values()}
    return Asked(said, tools_of(found["tools"]), others)


def _said(found: Mapping[str, Any]) -> str | tuple[Message, ...] | None:
    if found["messages"] is not None:
        return _until_asked("messages", found["messages"])
    if found["prompt"] is not None and not isinstance(found["prompt"], str):
        return _until_asked("prompt", found["prompt"])
    for key in ("prompt", "instruction", "question"):
        text = found[key]
        if text is None:
            continue
        parts = [text, found["input"] or ""] if key == "instruction" else [text]
        if not all(isinstance(part, str) for part in parts):
            raise BadRecord(f"{key} is no text")
        if not text.strip():
            raise BadRecord(f"{key} is empty")
        return "\n\n".join(part for part in parts if part)
    return None


def _until_asked(name: str, value: Any) -> tuple[Message, ...]:
    messages = messages_of(name, value)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise BadRecord(f"{name} asks nothing")
    return messages


def record_fault(config: Config) -> Callable[[Record, Mapping[str, str]], str | None]:
    """What is wrong with a record, by asking it. One that is too long does not count: a file may be sorted by
    length."""
    path = config.tokenizer.path
    try:
        encoder = None if path is None else chat_encoder(config, path, config.train.sequence_length)
    except InputError:
        encoder = None
    if encoder is None:
        return lambda record, fields: None  # who looks at the tokenizer has told
    reader = PromptReader(encoder, config.train.sequence_length)

    def fault(record: Record, fields: Mapping[str, str]) -> str | None:
        try:
            reader.read(record, fields, "")
        except BadRecord as error:
            return str(error)
        return None

    return fault
