"""Records as one text each, with the characters that an assistant speaks."""

from dataclasses import dataclass, replace

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


def spell(content: Conversation | Completion | Text, template: ChatTemplate, since: int = 0) -> Spelled:
    """
    Args:
        since: message of a conversation from which on its answers are wanted.

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
        wanted = [place for place in places_of_answers(content) if place >= since]
        answers = tuple(_answer_by_growth(content, place, template, rendered.text) for place in wanted)
        return Spelled(rendered.text, answers, of_template=True, marked=False)
    answers = tuple(rendered.answers)
    before = content.messages[:since]
    if any(message["role"] == "assistant" for message in before):
        answers = answers[len(template.render(before, content.tools).answers) :]
    return Spelled(rendered.text, answers, of_template=True)


def _answer_by_growth(content: Conversation, place: int, template: ChatTemplate, whole: str) -> Span:
    """The answer `messages[place]` is what the text grows by when the assistant is asked and then answers."""
    asked = template.render(content.messages[:place], content.tools, ask=True).text
    answered = template.render(content.messages[: place + 1], content.tools).text
    if not (answered.startswith(asked) and whole.startswith(answered)):
        raise BadRecord(
            f"the chat template {template.name} writes what stands until messages[{place}] otherwise "
            "once more follows, so that nobody can tell which tokens are the assistant's; mark them with "
            "{% generation %} in a copy of the template, and name that in sft.chat_template (or "
            "preferences.chat_template), or learn the last answer only (sft.learn=last)"
        )
    return len(asked), len(answered)


def until(conversation: Conversation, place: int) -> Conversation:
    """The conversation with `messages[place]` as its last."""
    return replace(conversation, messages=conversation.messages[: place + 1])


def places_of_answers(conversation: Conversation) -> list[int]:
    """Of the messages of the assistant, in order."""
    return [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]


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
