"""The final number of an answer, exactly: `#### 42`, `\\boxed{42}`, "the answer is 42", or the last one.

An answer that names several numbers where one should stand has none. All patterns take time in proportion to
the text, and none reads a number that is long enough to be work.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

LONGEST_NUMBER = 60
"""Characters."""
LONGEST_POWER = 3
LONGEST_MARKED = 400
"""Characters behind a mark that are looked at."""
MOST_MARKS = 50
"""From the last on."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
NUMBER = re.compile(
    # A sign behind a letter, a digit or a bracket is a minus between two numbers, or a hyphen.
    rf"(?P<sign>(?<![\w)\].,])-\s?\$?|(?<![\w)\]])\+)?"
    rf"(?<![\w.^])(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s?/\s?[0-9]))?"
    rf"(?P<top>{_DECIMAL})(?:\s?/\s?(?P<bottom>{_DECIMAL}))?(?:[eE](?P<power>[+-]?[0-9]+))?"
    rf"(?P<percent>\s?%)?"
)
FRACTION = re.compile(r"\\[dt]?frac\s?(?:\{\s?([0-9.,]+)\s?\}\s?\{\s?([0-9.,]+)\s?\}|([0-9])\s?([0-9]))")
MARK = re.compile(
    r"(?P<hashes>####)|(?P<boxed>\\boxed\s?\{)|(?P<said>\banswer\b[ \t]{0,3}(?:is|=|:)|\banswer:)",
    re.IGNORECASE,
)
_DROPPED = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s?\{[^{}]{0,80}\}(?:\^\{?[0-9]+\}?)?"
    r"|\\[,;:! ]|\^?\{?\\circ\}?|[*_`~]+(?=\s|$)|(?<=\s)[*_`]+|^[*_`]+|\*\*"
)
_SPELLED = (
    ("{,}", ","),
    ("\\%", "%"),
    ("\\$", "$"),
    ("\u2212", "-"),
    ("\u2013", "-"),
    ("\\left", ""),
    ("\\right", ""),
)
_CURRENCY = re.compile(r"[$€£¥₹]\s?(?=-?\.?[0-9])")
_BEFORE_CURRENCY = re.compile(r"-[$€£¥₹]\s?(?=\.?[0-9])")


@dataclass(frozen=True)
class Number:
    value: Fraction
    is_percent: bool = False
    """It was followed by a percent sign, which `value` does not know of."""


def same(told: Number, right: Number) -> bool:
    """Whether they are the same number, exactly. Where only one of them has a percent sign, that may be a
    unit (50 % where 50 is right) or a hundredth (50 % where 0.5 is)."""
    if told.is_percent == right.is_percent:
        return told.value == right.value
    percent, bare = (told, right) if told.is_percent else (right, told)
    return percent.value in (bare.value, bare.value * 100)


def final_number(text: str, marked: bool = False) -> Number | None:
    """The number that a text comes to; None: none, or more than one.

    The last mark decides, whatever stands before it; a text without marks comes to its last number.

    Args:
        marked: a number without a mark does not count.
    """
    for kind, behind in _marked(text):
        found = _only_number(behind)
        # "The answer is found by adding" is no mark.
        if found is not None or kind != "said":
            return found
    numbers = [] if marked else [*NUMBER.finditer(_readable(text))]
    return _number(numbers[-1]) if numbers else None


def number_of(value: Any) -> Number | None:
    """What a record gives as the right number: a number, a text that is one, or a whole solution."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        value = repr(value)
    return final_number(value) if isinstance(value, str) else None


def _marked(text: str) -> Iterator[tuple[str, str]]:
    """What kind of mark, and what stands behind it; the last one first."""
    for mark in [*MARK.finditer(text)][: -1 - MOST_MARKS : -1]:
        behind = text[mark.end() : mark.end() + LONGEST_MARKED]
        if mark.lastgroup == "boxed":
            yield "boxed", _until_closed(behind)
        elif mark.lastgroup == "hashes":
            yield "hashes", behind.split("\n", 1)[0]
        else:
            # To the end of the sentence; a point between digits is none.
            yield "said", re.split(r"\n|[.!?;](?=\s|$)", behind.lstrip(" \t:="), maxsplit=1)[0]


def _until_closed(text: str) -> str:
    """Until the brace that closes; nothing where none does."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:place]
    return ""


def _only_number(text: str) -> Number | None:
    readable = _readable(text).rsplit("=", 1)[-1].strip()
    # Inside of a formula a number is not the answer: 10^5, 2x + 1.
    if "^" in re.sub(r"(?<=[A-Za-z])\^\{?[0-9]+\}?", "", readable):
        return None
    numbers = [*NUMBER.finditer(readable)]
    return _number(numbers[0]) if len(numbers) == 1 else None


def _number(match: re.Match[str]) -> Number | None:
    parts = match.groupdict()
    if len(match[0]) > LONGEST_NUMBER or len(parts["power"] or "") > LONGEST_POWER:
        return None
    top, bottom = (Fraction((parts[name] or "1").replace(",", "")) for name in ("top", "bottom"))
    if not bottom:
        return None
    value = Fraction(parts["whole"] or 0) + top / bottom
    value *= Fraction(10) ** int(parts["power"] or 0)
    if parts["sign"] and parts["sign"].startswith("-"):
        value = -value
    return Number(value, parts["percent"] is not None)


def _readable(text: str) -> str:
    """The same with numbers as `NUMBER` knows them: TeX and markup taken off, signs of one kind."""
    for spelled, plain in _SPELLED:
        text = text.replace(spelled, plain)
    text = _DROPPED.sub(" ", text)
    text = "".join(_vulgar(character) for character in text) if not text.isascii() else text
    text = FRACTION.sub(lambda found: f" {found[1] or found[3]}/{found[2] or found[4]}", text)
    text = re.sub(r"-\s+(?=[0-9]+/[0-9])", "-", text)
    return _CURRENCY.sub("", _BEFORE_CURRENCY.sub("-", text))


def _vulgar(character: str) -> str:
    """½ as 1/2."""
    if unicodedata.category(character) != "No" or "VULGAR" not in unicodedata.name(character, ""):
        return character
    return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
