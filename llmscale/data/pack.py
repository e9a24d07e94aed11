"""Several examples a row: which go together."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def packed(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of examples, by their places in `lengths`: each example once, the longest first, each into the row
    that it fills best (best fit decreasing; within 11/9 of the fewest rows possible, Johnson 1973).

    Raises:
        ValueError: an example is longer than a row.
    """
    rows: list[list[int]] = []
    with_space: dict[int, list[int]] = defaultdict(list)
    """Rows by the tokens that they have room for."""
    spaces: list[int] = []
    """Those numbers, in order."""
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        length = lengths[place]
        if length > row_length:
            raise ValueError(f"example {place} has {length} tokens, and a row {row_length}")
        at = bisect_left(spaces, length)
        if at == len(spaces):
            row, space = len(rows), row_length
            rows.append([])
        else:
            space = spaces[at]
            row = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[at]
        rows[row].append(place)
        left = space - length
        if left not in with_space:
            insort(spaces, left)
        with_space[left].append(row)
    return rows
