"""Documents that lie one after the other in packed rows: where each is, and what it goes on from.

A document may go on from one before it in its row, its beginning, of which it sees all tokens, as several
answers to one prompt do; that one goes on from none.
"""

from collections.abc import Iterator
from typing import NamedTuple

Lengths = tuple[tuple[int, ...], ...]
"""Of the documents of each row, which fill it; or of what each of them goes on from: of the last document
before it that goes on from none, or 0."""


class Document(NamedTuple):
    """`Document` of cpu/attention.cpp."""

    row: int
    start: int
    length: int
    before_start: int
    before: int


def documents_of(lengths: Lengths, before: Lengths | None, sequence: int) -> Iterator[Document]:
    """Those of all rows, in their order.

    Raises:
        ValueError: they do not fill their rows, or one goes on from less or more than the whole of its
            beginning.
    """
    for row, row_lengths in enumerate(lengths):
        if sum(row_lengths) != sequence:
            raise ValueError(f"documents of {row_lengths} tokens do not fill a row of {sequence}")
        start, beginning = 0, Document(row, 0, 0, 0, 0)
        for length, shared in zip(
            row_lengths, before[row] if before else (0,) * len(row_lengths), strict=True
        ):
            if shared not in (0, beginning.length):
                raise ValueError(f"a document goes on from {shared} of {beginning.length} tokens")
            document = Document(row, start, length, beginning.start if shared else 0, shared)
            beginning = beginning if shared else document
            start += length
            yield document
