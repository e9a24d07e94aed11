"""What is asked of a generator, what it has written, and which texts are being written at a time."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """A text that is to go on."""

    tokens: Sequence[int]
    """Of the prompt."""
    seed: int
    """Its own: what it draws depends on it and on the model alone, and not on other texts."""
    max_new_tokens: int


@dataclass
class Text:
    """What has been written after a prompt."""

    tokens: list[int] = field(default_factory=list)
    """With the one that ends it."""
    log_probabilities: list[float] = field(default_factory=list)
    """Of each (`llmscale.engine.sampling.Drawn`)."""
    finished: bool = False
    """It ended by itself, and was not cut off."""


class Rows:
    """The texts that are written side by side, in the rows of a cache without a gap. Where one ends, the last
    of them takes its place, and one that waits begins behind them.

    Args:
        positions: tokens that a prompt and its text may have together.
        batch: rows, at most.
    """

    def __init__(
        self, requests: Sequence[Request], end_ids: Collection[int], positions: int, batch: int
    ) -> None:
        self.texts = [Text() for _ in requests]
        self._requests, self._end_ids, self._batch = requests, end_ids, batch
        self._room = [min(one.max_new_tokens, positions - len(one.tokens)) for one in requests]
        self._waiting = list(range(len(requests)))[::-1]
        self._open: list[int] = []
        """Of each row its request."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_done(self) -> bool:
        return not (self._open or self._waiting)

    def admit(self, fewest: int, most_tokens: int) -> list[int]:
        """Requests whose texts now begin, in new rows; none as long as there is room for fewer than `fewest`.

        Args:
            most_tokens: of their prompts, with the padding to the longest; a single one may have more.
        """
        room = self._batch - len(self._open)
        if room < min(fewest, len(self._waiting)):
            return []
        admitted: list[int] = []
        longest = 0
        while self._waiting and len(admitted) < room:
            longest = max(longest, len(self._requests[self._waiting[-1]].tokens))
            if admitted and longest * (len(admitted) + 1) > most_tokens:
                break
            admitted.append(self._waiting.pop())
        self._open += admitted
        return admitted

    def seeds(self, first: int) -> Iterator[tuple[int, int]]:
        """Seed and number of the next token of each row from `first` on."""
        for request in self._open[first:]:
            yield self._requests[request].seed, len(self.texts[request].tokens)

    @property
    def last_tokens(self) -> list[int]:
        """Of each row."""
        return [self.texts[request].tokens[-1] for request in self._open]

    @property
    def last_positions(self) -> list[int]:
        """Of those tokens."""
        return [
            len(self._requests[request].tokens) + len(self.texts[request].tokens) - 1
            for request in self._open
        ]

    def add(
        self, first: int, tokens: Sequence[int], log_probabilities: Sequence[float]
    ) -> tuple[list[int | None], list[int], list[int]]:
        """The next token of each row from `first` on.

        Returns:
            Of each request its new token, None of those that got none; and the rows that have to move now,
            and where to.
        """
        added: list[int | None] = [None] * len(self.texts)
        ended: set[int] = set()
        for row, token, log_probability in zip(
            range(first, len(self._open)), tokens, log_probabilities, strict=True
        ):
            request = self._open[row]
            text = self.texts[request]
            text.tokens.append(token)
            text.log_probabilities.append(log_probability)
            text.finished = token in self._end_ids
            added[request] = token
            if text.finished or len(text.tokens) >= self._room[request]:
                ended.add(row)
        return added, *self._close_up(ended)

    def _close_up(self, ended: set[int]) -> tuple[list[int], list[int]]:
        left = len(self._open) - len(ended)
        gaps = sorted(row for row in ended if row < left)
        moving = [row for row in range(left, len(self._open)) if row not in ended]
        for row, gap in zip(moving, gaps, strict=True):
            self._open[gap] = self._open[row]
        del self._open[left:]
        return moving, gaps
