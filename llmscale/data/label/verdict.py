"""What a judge has said, in numbers, and what two of its verdicts on the same pair come to."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmscale.data.label.answers import Answer
from llmscale.data.label.options import LabelConfig, WordsSection

Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Verdict:
    """Probabilities that the judge says the first answer is better, the second, or neither; they sum to 1."""

    first: float
    second: float
    tie: float
    is_graded: bool
    """They are the model's, not 1 for what it said."""

    @property
    def place(self) -> Literal["first", "second", "tie"]:
        """The likeliest."""
        best = max(self.first, self.second, self.tie)
        if self.tie == best or self.first == self.second:
            return "tie"
        return "first" if self.first == best else "second"


@dataclass(frozen=True)
class Outcome:
    """Of a pair of answers a and b."""

    winner: Winner
    probability_a: float
    """Of a being better, a tie counted half, averaged over the orders."""
    verdicts: tuple[Verdict, ...]
    """With a first; if both orders were asked, then with b first."""

    @property
    def probability(self) -> float:
        """Of the winner being better."""
        return 1 - self.probability_a if self.winner == "b" else self.probability_a

    @property
    def is_consistent(self) -> bool:
        """Every order names the same answer, or a tie."""
        return len(set(self.by_order)) == 1

    @property
    def by_order(self) -> list[Winner]:
        return [_winner(verdict, swapped=order == 1) for order, verdict in enumerate(self.verdicts)]


def spoken_at(text: str, words: WordsSection) -> tuple[str, int] | None:
    """The word that is the verdict of a text, and the character where it begins; None: it has none.

    It stands after the last marker, or where there is none at the beginning, behind signs at most (`**A**`).
    """
    begin = 0
    if words.marker is not None:
        found = text.rfind(words.marker)
        if found < 0:
            return None
        begin = found + len(words.marker)
    longest_first = sorted(words.spoken(), key=len, reverse=True)
    match = re.compile(rf"[\W_]*({'|'.join(map(re.escape, longest_first))})(?!\w)").match(text, begin)
    return (match.group(1), match.start(1)) if match else None


def read_verdict(answer: Answer, words: WordsSection) -> Verdict | None:
    """None: the text has no verdict."""
    said = spoken_at(answer.text, words)
    if said is None:
        return None
    named = (words.first, words.second, words.tie)
    first, second, tie = (_mass(answer.alternatives or {}, word) for word in named)
    total = first + second + tie
    if total > 0:
        return Verdict(first / total, second / total, tie / total, is_graded=True)
    first, second, tie = (float(said[0] == word) for word in named)
    return Verdict(first, second, tie, is_graded=False)


def reconcile(verdicts: Sequence[Verdict], config: LabelConfig) -> Outcome:
    """
    Args:
        verdicts: with a first; if both orders were asked, then with b first.
    """
    shares = [
        (verdict.second if swapped else verdict.first) + verdict.tie / 2
        for swapped, verdict in enumerate(verdicts)
    ]
    probability_a = sum(shares) / len(shares)
    outcome = Outcome("tie", probability_a, tuple(verdicts))
    if config.reconcile == "agree":
        return replace(outcome, winner=outcome.by_order[0]) if outcome.is_consistent else outcome
    if abs(2 * probability_a - 1) < config.tie_below or probability_a == 0.5:
        return outcome
    return replace(outcome, winner="a" if probability_a > 0.5 else "b")


def _winner(verdict: Verdict, swapped: bool) -> Winner:
    if verdict.place == "tie":
        return "tie"
    return "a" if (verdict.place == "first") != swapped else "b"


def _mass(alternatives: Mapping[str, float], word: str | None) -> float:
    """Probability of all tokens that are this word, with blanks or signs around it or without."""
    if word is None:
        return 0.0
    return sum(math.exp(value) for token, value in alternatives.items() if bare(token) == word)


def bare(token: str) -> str:
    """A token without blanks and signs around it."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", token)
