"""What a record holds: a conversation, a prompt with its completion, or plain text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmscale.data.records import Record

Message = Mapping[str, Any]
"""`role`, `content`, and what else the chat template knows (tool_calls, name, …)."""

ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRecord(ValueError):
    """A record cannot be used; the message says why."""


@dataclass(frozen=True)
class Conversation:
    """For a chat template."""

    messages: tuple[Message, ...]
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Completion:
    """For no template: the prompt, and what is to be said after it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """All of it is learned."""

    text: str


def read_record(record: Record, fields: Mapping[str, str]) -> Conversation | Completion | Text:
    """What the record holds, told by its fields: `messages` (and `tools`), `prompt` and `completion` (texts,
    or lists of messages), `instruction`, `input` and `output`, or `text`.

    Args:
        fields: what those fields are called in the record, where it is not by these names.

    Raises:
        BadRecord: none of them is there, or what is there is not what it should be.
    """
    found = {name: record.get(called) for name, called in _names(fields).items()}
    if found["messages"] is not None:
        return Conversation(messages_of("messages", found["messages"]), tools_of(found["tools"]))
    if found["prompt"] is not None and found["completion"] is not None:
        return _prompted(found["prompt"], found["completion"], tools_of(found["tools"]))
    if found["instruction"] is not None and found["output"] is not None:
        asked = [_text("instruction", found["instruction"]), _text("input", found["input"] or "")]
        question = "\n\n".join(part for part in asked if part)
        return _asked(question, _text("output", found["output"]))
    if found["text"] is not None:
        return Text(_text("text", found["text"]))
    raise BadRecord(
        f"has the fields {', '.join(record) or '(none)'}: none of messages, prompt and completion, "
        "instruction and output, or text; data.train[].fields says what they are called"
    )


def _names(fields: Mapping[str, str]) -> dict[str, str]:
    known = ("messages", "tools", "prompt", "completion", "instruction", "input", "output", "text")
    return {name: fields.get(name, name) for name in known}


def _prompted(prompt: Any, completion: Any, tools: Any) -> Conversation | Completion:
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(prompt, completion)
    return Conversation((*messages_of("prompt", prompt), *messages_of("completion", completion)), tools)


def _asked(question: str, answer: str) -> Conversation:
    return Conversation(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def messages_of(name: str, value: Any) -> tuple[Message, ...]:
    """
    Raises:
        BadRecord: the field `name` is no list of them.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRecord(f"{name} is no list of messages")
    return tuple(_message(f"{name}[{place}]", message) for place, message in enumerate(value))


def _message(name: str, message: Any) -> Message:
    """As chat templates expect it: a text as content, and no key without a value (a table has all keys in all
    rows)."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise BadRecord(f"{name} has no role of {', '.join(ROLES)}")
    calls = message.get("tool_calls")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(name, part) for part in content)
    if not isinstance(content, str) and not calls:
        raise BadRecord(f"{name} has neither a content nor tool_calls")
    known = {key: value for key, value in message.items() if value is not None}
    if calls:
        known["tool_calls"] = [_call(name, call) for call in calls]
    return {**known, "content": content}


def _part(name: str, part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise BadRecord(f"{name} has content that is no text, which this model cannot read")


def _call(name: str, call: Any) -> Mapping[str, Any]:
    """Arguments as an object, which templates write as JSON; often they come as JSON in a text."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRecord(f"{name} has a tool call without the name of a function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        called = {**function, "arguments": json.loads(arguments)}
    except ValueError:
        raise BadRecord(f"{name} has a tool call whose arguments are not JSON") from None
    return {**call, "function": called} if "function" in call else called


def tools_of(value: Any) -> Sequence[Mapping[str, Any]] | None:
    """
    Raises:
        BadRecord: it is no list of them.
    """
    if value is None or value == []:
        return None
    if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
        raise BadRecord("tools is no list of tools")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{name} is no text")
    return value
