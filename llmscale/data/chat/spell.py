"""Records as one text each, with the characters that an assistant speaks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llmscale.data.chat.conversation import BadRecord, Completion, Conversation, Message, Text
from llmscale.data.chat.template import ChatTemplate, Span

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message has what was thought before it was said."""


@dataclass(frozen=True)
class Spelled:
    """A record as text."""

    text: str
    answers: tuple[Span, ...]
    """What an assistant speaks, in order."""
    of_template: bool
    """Special tokens are written in the text, by their names."""
    marked: bool = True
    """`answers` are exact. Else they go on to where the next turn begins."""


def spell(
    content: Conversation | Completion | Text, template: ChatTemplate, which: Literal["all", "last"]
) -> Spelled:
    """
    Args:
        which: answers that are wanted.

    Raises:
        BadRecord: the template does not take the conversation, or does not tell its answers.
    """
    if isinstance(content, Completion):
        text = content.prompt + content.completion
        return Spelled(text, ((len(content.prompt), len(text)),), of_template=False)
    if isinstance(content, Text):
        return Spelled(content.text, ((0, len(content.text)),), of_template=False)
    rendered = template.render(content.messages, content.tools)
    if not template.marks_answers:
        answers = _answers_by_growth(content, template, rendered.text)
        wanted = answers[-1:] if which == "last" else answers
        return Spelled(rendered.text, wanted, of_template=True, marked=False)
    answers = tuple(rendered.answers)
    if which == "last" and len(answers) > 1:
        earlier = template.render(content.messages[:-1], content.tools)
        answers = answers[len(earlier.answers) :]
    return Spelled(rendered.text, answers, of_template=True)


def _answers_by_growth(content: Conversation, template: ChatTemplate, whole: str) -> tuple[Span, ...]:
    """An answer is what the text grows by when the assistant is asked and then answers."""
    answers = []
    for place, message in enumerate(content.messages):
        if message["role"] != "assistant":
            continue
        asked = template.render(content.messages[:place], content.tools, ask=True).text
        answered = template.render(content.messages[: place + 1], content.tools).text
        if not (answered.startswith(asked) and whole.startswith(answered)):
            raise BadRecord(
                f"the chat template {template.name} writes what stands until messages[{place}] otherwise "
                "once more follows, so that nobody can tell which tokens are the assistant's; mark them with "
                "{% generation %} in a copy of the template, and name that in sft.chat_template"
            )
        answers.append((len(asked), len(answered)))
    return tuple(answers)


def until_last_answer(conversation: Conversation) -> Conversation | None:
    """Without the turns that nobody answers; None if there is no answer."""
    last = next(_answers_from_the_end(conversation), None)
    return None if last is None else replace(conversation, messages=conversation.messages[: last + 1])


def shortened(conversation: Conversation) -> Iterator[Conversation]:
    """The conversation until its last answer but one, until the one before that, and so on."""
    places = _answers_from_the_end(conversation)
    next(places, None)
    for place in places:
        yield replace(conversation, messages=conversation.messages[: place + 1])


def is_empty(content: Conversation | Completion | Text) -> bool:
    """Nothing is said that could be learned."""
    if isinstance(content, Text):
        return not content.text.strip()
    if isinstance(content, Completion):
        return not content.completion.strip()
    answers = [message for message in content.messages if message["role"] == "assistant"]
    return bool(answers) and not any(says_something(answer) for answer in answers)


def says_something(message: Message) -> bool:
    """There is more to a message than its role."""
    texts = (message.get(key) for key in ("content", *REASONING))
    return bool(message.get("tool_calls")) or any(isinstance(text, str) and text.strip() for text in texts)


def _answers_from_the_end(conversation: Conversation) -> Iterator[int]:
    messages = conversation.messages
    return (place for place in reversed(range(len(messages))) if messages[place]["role"] == "assistant")
