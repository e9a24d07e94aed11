"""Which rank holds up the others, from what was found when all of them were looked at. No torch.

When a collective does not end, most ranks are where they should be and wait. The one to blame cannot move
(it is stopped), or is not there (it does something else), or waits somewhere else (it has taken another
way). Ranks with the same answer are told apart by their steps.
"""

import re
from collections import Counter
from collections.abc import Sequence

from llmscale.control.messages import Evidence

STATES = {
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "Z": "has ended",
    "X": "is gone",
}

FRAME = "{file}:{line} in {function}: {text}"
"""How a frame of a stack is written; see `llmscale.runtime.stacks`."""
_FRAME = re.compile(r"^(?P<file>.*):(?P<line>\d+) in (?P<function>.*?): (?P<text>.*)$")

COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
_WAITS = re.compile(r"\.(wait|synchronize)\(")
"""Waiting for a collective that was begun before leaves no frame of torch's."""

Place = tuple[str, ...]


def find_culprit(evidence: Sequence[Evidence]) -> tuple[Evidence, str]:
    """The rank that most likely holds up the others, and why ("is stopped by a signal").

    Args:
        evidence: of as many ranks as have been reached, at least one.
    """
    return suspects(evidence)[0]


def suspects(evidence: Sequence[Evidence]) -> list[tuple[Evidence, str]]:
    """All ranks to which the first rule that tells ranks apart points; the most suspect one first."""
    for rule in (_unable, _absent, _elsewhere, _behind):
        found = rule(evidence)
        if found:
            return sorted(found, key=lambda pair: (pair[0].step, pair[0].rank))
    one = min(evidence, key=lambda found: found.rank)
    return [(one, "waits like all others; nothing tells them apart")]


def _unable(evidence: Sequence[Evidence]) -> list[tuple[Evidence, str]]:
    return [(one, STATES[one.process_state]) for one in evidence if one.process_state in STATES]


def _absent(evidence: Sequence[Evidence]) -> list[tuple[Evidence, str]]:
    absent = [one for one in evidence if _waiting_place(one) is None]
    if len(absent) == len(evidence):
        return []
    return [(one, _what_it_does(one)) for one in absent]


def _elsewhere(evidence: Sequence[Evidence]) -> list[tuple[Evidence, str]]:
    places = {one.rank: _waiting_place(one) for one in evidence}
    usual = Counter(places.values()).most_common()
    if len(usual) < 2:
        return []
    # With as many ranks here as there, either may have gone wrong.
    most = {place for place, count in usual if count == usual[0][1]}
    majority = most if len(most) == 1 else set()
    others = next(iter(majority), None)
    return [
        (one, f"waits in {_name(places[one.rank])}" + (f", the others in {_name(others)}" if others else ""))
        for one in evidence
        if places[one.rank] not in majority
    ]


def _behind(evidence: Sequence[Evidence]) -> list[tuple[Evidence, str]]:
    furthest = max(one.step for one in evidence)
    return [(one, f"is at step {one.step}, others at {furthest}") for one in evidence if one.step < furthest]


def _what_it_does(one: Evidence) -> str:
    if not one.stack:
        return {"D": "waits for a disk and does not answer", "R": "is busy and does not answer"}.get(
            one.process_state, "does not answer"
        )
    match = _FRAME.match(one.stack[0])
    where = f"{match['function']} ({match['file']}:{match['line']})" if match else one.stack[0]
    return f"is in {where}, while others wait for it"


def _waiting_place(one: Evidence) -> Place | None:
    """Where in a collective the rank is: the call and what called it; None where it is in none."""
    if not one.stack:
        return None
    frames = [match for text in one.stack if (match := _FRAME.match(text))]
    inside = 0
    while inside < len(frames) and any(part in frames[inside]["file"] for part in COLLECTIVES):
        inside += 1
    if inside == len(frames) or not (inside or _WAITS.search(frames[0]["text"])):
        return None
    caller = frames[inside]
    called = frames[0]["function"] if inside else "wait"
    return called, f"{caller['file']}:{caller['line']}"


def _name(place: Place | None) -> str:
    return f"{place[0]} called at {place[1]}" if place else "no collective"
