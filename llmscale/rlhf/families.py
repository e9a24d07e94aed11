"""Answers that share a row and the prompt before them, which is then read once.

The prompt, but for its last token, is a document in which nothing is learned; each answer begins with that
last token, whose label is the answer's first, and goes on from the document (`llmscale.model.documents`).

Shapes: T tokens of an experience.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmscale.rlhf.experience import Experience
from llmscale.rlhf.workers.dealing import Cost


@dataclass(frozen=True)
class Family:
    """Experiences that lie next to each other in a row; or one alone, which shares nothing."""

    members: list[int]
    """Their numbers."""
    shared: int
    """Tokens that they have in common and that are laid out once, virtual ones included."""
    length: int
    """Tokens of all together."""


def families(experiences: Sequence[Experience], row_length: int, virtual_tokens: int) -> list[Family]:
    """Every experience once. What does not fit into a row together is more than one family.

    Args:
        virtual_tokens: placeholders before each answer.
    """
    of_prompt: dict[bytes, list[int]] = defaultdict(list)
    for number, experience in enumerate(experiences):
        of_prompt[experience.tokens_T[: _prompt(experience)].tobytes()].append(number)
    found: list[Family] = []
    for members in of_prompt.values():
        shared = max(0, _prompt(experiences[members[0]]) - 1 + virtual_tokens)
        lengths = {number: len(experiences[number].tokens_T) - 1 + virtual_tokens for number in members}
        found.extend(_that_fit(lengths, shared, row_length))
    return found


def _that_fit(lengths: dict[int, int], shared: int, row_length: int) -> Iterator[Family]:
    """Families of one prompt, filled one after the other."""
    members: list[int] = []
    length = shared
    for number, whole in [*lengths.items(), (-1, row_length + shared + 1)]:
        if members and length + whole - shared > row_length:
            is_alone = len(members) == 1
            yield Family(members, 0 if is_alone else shared, length)
            members, length = [], shared
        members = [*members, number]
        length += whole - shared


def costs(experiences: Sequence[Experience]) -> list[Cost]:
    """Tokens of each, those of its prompt shared with the other answers to it."""
    return [Cost(len(one.tokens_T), _prompt(one), one.prompt) for one in experiences]


def _prompt(experience: Experience) -> int:
    """Tokens before the first one that is learned; all but one where none is."""
    learned_T = experience.learned_T > 0
    first = int(learned_T.argmax()) if learned_T.any() else len(learned_T) - 1
    return min(first, len(learned_T) - 1)
