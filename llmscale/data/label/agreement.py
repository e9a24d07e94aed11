"""How far a judge can be trusted: against human labels, against itself, and in what it likes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmscale.data.label.pairs import Pair, as_text
from llmscale.data.label.verdict import Outcome, Winner

CLASSES: tuple[Winner, ...] = ("a", "b", "tie")
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Agreement:
    """With humans, on the pairs that they have judged."""

    pairs: int
    decided: int
    """Pairs on which neither names a tie."""
    accuracy: float | None
    """Of those, where both choose the same; None: there are none."""
    accuracy_interval: tuple[float, float] | None
    """95 % (Wilson)."""
    kappa: float | None
    """Cohen's, over a, b and tie; None: all that is said is one class, and chance explains everything."""
    confusion: list[list[int]]
    """Rows the human's a, b, tie; columns the judge's."""


@dataclass(frozen=True)
class Position:
    """What the place of an answer does, over all verdicts that name one."""

    verdicts: int
    first_chosen: float | None
    """Share that go to the answer shown first; without bias 0.5 where both orders are asked."""
    consistent: float | None
    """Share of the pairs asked in both orders whose verdicts agree."""
    always_first: int
    """Pairs whose verdicts both go to the answer shown first."""
    always_second: int


def agreement(labels: Iterable[tuple[Winner, Winner]]) -> Agreement:
    """
    Args:
        labels: the human's and the judge's for each pair.
    """
    confusion = [[0] * len(CLASSES) for _ in CLASSES]
    for human, judge in labels:
        confusion[CLASSES.index(human)][CLASSES.index(judge)] += 1
    right = confusion[0][0] + confusion[1][1]
    decided = right + confusion[0][1] + confusion[1][0]
    return Agreement(
        sum(map(sum, confusion)),
        decided,
        right / decided if decided else None,
        wilson_interval(right, decided) if decided else None,
        cohens_kappa(confusion),
        confusion,
    )


def cohens_kappa(confusion: Sequence[Sequence[int]]) -> float | None:
    """(observed - expected) / (1 - expected) agreement (Cohen 1960, Educational and Psychological Measurement
    20:37); None where the expected one is 1 or nothing was counted.

    Args:
        confusion: counts, a row a class of the one, a column a class of the other.
    """
    total = sum(map(sum, confusion))
    rows = [sum(row) for row in confusion]
    columns = [sum(column) for column in zip(*confusion)]
    by_chance = sum(row * column for row, column in zip(rows, columns))
    if by_chance == total**2:
        return None
    observed = sum(confusion[place][place] for place in range(len(rows)))
    return (observed * total - by_chance) / (total**2 - by_chance)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, JASA 22:209)."""
    share, z = right / count, Z_95
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def position(outcomes: Iterable[Outcome]) -> Position:
    judged = list(outcomes)
    places = [verdict.place for outcome in judged for verdict in outcome.verdicts]
    named = [place for place in places if place != "tie"]
    both = [outcome for outcome in judged if len(outcome.verdicts) == 2]
    twice = [tuple(verdict.place for verdict in outcome.verdicts) for outcome in both]
    return Position(
        len(named),
        named.count("first") / len(named) if named else None,
        sum(outcome.is_consistent for outcome in both) / len(both) if both else None,
        twice.count(("first", "first")),
        twice.count(("second", "second")),
    )


def longer_chosen(decided: Iterable[tuple[Pair, Outcome]]) -> float | None:
    """Share of the preferences that go to the answer of more characters; None: there are none."""
    longer = []
    for pair, outcome in decided:
        lengths = len(as_text(pair.a)), len(as_text(pair.b))
        if outcome.winner != "tie" and lengths[0] != lengths[1]:
            longer.append((lengths[0] > lengths[1]) == (outcome.winner == "a"))
    return sum(longer) / len(longer) if longer else None
