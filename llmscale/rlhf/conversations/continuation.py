"""What a chat template writes between two answers, for a conversation whose tokens must stay as they are."""

from collections.abc import Sequence

from llmscale.config.problems import InputError, Problem
from llmscale.data.chat.conversation import BadRecord, Message
from llmscale.data.chat.encode import ChatEncoder

MARK = "Answer7f3A9c"
"""Stands where the answer does, whatever that is."""
PROBES = (MARK, f"<think>\n{MARK}\n</think>\n\nSo it is {MARK}.", f"{MARK} one\n{MARK} two")


class Continuation:
    """
    Args:
        encoder: with the template.
        key: of the config, that names it.

    Raises:
        InputError: the template writes what was said before otherwise once more is said. Then the tokens
            which a model wrote could not be those which it is asked to go on with.
    """

    def __init__(self, encoder: ChatEncoder, key: str = "rlhf.chat_template") -> None:
        self._encoder = encoder
        fault = self._fault()
        if fault is not None:
            message = (
                f"cannot be continued without changing what stands before: {fault}; take a template that "
                "writes each turn the same whatever follows, such as chatml"
            )
            raise InputError([Problem(key, encoder.template.name, message)])

    def tokens(
        self, said: Sequence[Message], answer: Sequence[int], following: Sequence[Message]
    ) -> list[int]:
        """What stands between the last token of `answer` and the next one of the assistant.

        Args:
            said: what was said before the answer.
            answer: the tokens that the model wrote.
            following: what is said after it.

        Raises:
            BadRecord: the template does not take it, or writes otherwise what stands before.
        """
        tokens = self._encoder.rendered(self._parts(said, following)[1])
        # The token that ends the answer is there already, if the model wrote it.
        return tokens[1:] if answer and tokens[:1] == [answer[-1]] else tokens

    def _parts(self, said: Sequence[Message], following: Sequence[Message]) -> tuple[str, str]:
        """What the template writes right before an answer, and what after it until the next."""
        template = self._encoder.template
        asked = template.render(said, ask=True).text
        whole = template.render([*said, _assistant(MARK), *following], ask=True).text
        if not whole.startswith(asked):
            raise BadRecord("what stands before an answer is written otherwise once that is there")
        before, mark, after = whole[len(asked) :].partition(MARK)
        if not mark or MARK in after:
            raise BadRecord("an answer is not written once, as it is")
        if before.strip():
            raise BadRecord(f"{before!r} is written before an answer, where the model was asked without it")
        return before, after

    def _fault(self) -> str | None:
        """By an exchange of three answers: each must be written whole, and stay as it is."""
        said: list[Message] = [{"role": "user", "content": "a"}]
        try:
            for probe in PROBES:
                asked = self._encoder.template.render(said, ask=True).text
                before, after = self._parts(said, [{"role": "user", "content": "b"}])
                said += [_assistant(probe), {"role": "user", "content": "b"}]
                if self._encoder.template.render(said, ask=True).text != asked + before + probe + after:
                    return f"the answer {probe!r} is written otherwise once more is said"
        except BadRecord as error:
            return str(error)
        return None


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
