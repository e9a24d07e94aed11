"""Each answer that is judged alone gets a second one beside it: what was said to another prompt.

How likely the model finds answers that do not belong to their prompts tells how far it is from the reference
as a whole (the estimate of KL in KTO, arXiv:2402.01306, section 4.1).
"""

from collections.abc import Iterator

import numpy as np

from llmscale.data.examples import Document, Example, ExampleSet

TRIES = 50
"""Others that are looked at for one of another prompt."""


def with_mismatches(examples: ExampleSet, row: int, placeholders: int, seed: int) -> Iterator[Example]:
    """Each example with a second document: its prompt, and the answer of the one that follows it in an order
    by the seed. Answers to the same prompt are passed over, and an answer is cut where the row ends.

    Args:
        row: tokens that the two documents may take, of which the last token of each is none.
        placeholders: tokens before each document.

    Raises:
        ValueError: there is no other example.
    """
    if len(examples) < 2:
        raise ValueError("has a single record, and kto needs the answers to other prompts, too")
    order = np.random.default_rng(seed).permutation(len(examples))
    place_in_order = np.argsort(order)
    for place in range(len(examples)):
        one = examples[place]
        other = _other(examples, one, order, int(place_in_order[place]))
        room = row - (len(one.tokens) - 1 + placeholders) - placeholders + 1
        yield _joined(one, _mismatched(one, other, room))


def _other(examples: ExampleSet, one: Example, order: np.ndarray, at: int) -> Example:
    """The first after `one` with another prompt, or else the very next."""
    following = (examples[int(order[(at + step) % len(order)])] for step in range(1, len(order)))
    looked_at = [next(following)]
    while np.array_equal(_prompt(one), _prompt(looked_at[-1])) and len(looked_at) < TRIES:
        other = next(following, None)
        if other is None:
            return looked_at[0]
        looked_at.append(other)
    return looked_at[-1]


def _answer_start(one: Example) -> int:
    return int(np.argmax(one.learned))


def _prompt(one: Example) -> np.ndarray:
    return one.tokens[: _answer_start(one)]


def _mismatched(one: Example, other: Example, room: int) -> Example:
    start = _answer_start(other)
    tokens = np.concatenate((_prompt(one), other.tokens[start:]))
    learned = np.concatenate((np.zeros(_answer_start(one), bool), other.learned[start:]))
    return Example(tokens[:room], learned[:room])


def _joined(one: Example, mismatched: Example) -> Example:
    return Example(
        np.concatenate((one.tokens, mismatched.tokens)),
        np.concatenate((one.learned, mismatched.learned)),
        one.target,
        (Document(len(one.tokens), role=0), Document(len(mismatched.tokens), role=1)),
    )
