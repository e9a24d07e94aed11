"""What has been judged, and the files that are made of it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from llmscale.data.files import replace_file
from llmscale.data.label.card import card, card_page
from llmscale.data.label.options import LabelConfig
from llmscale.data.label.pairs import Pair
from llmscale.data.label.verdict import Outcome

PREFERENCES = "preferences.jsonl"
TIES = "ties.jsonl"
LEFT_OUT = "left_out.jsonl"
CARD = "card.json"
CARD_PAGE = "card.md"


@dataclass(frozen=True)
class LeftOut:
    line: int
    reason: str


@dataclass(frozen=True)
class Cost:
    """Of all answers in the output's folder."""

    requests: int
    tokens: int


@dataclass
class Results:
    records: int = 0
    outcomes: list[tuple[Pair, Outcome]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    cut_candidates: int = 0
    """Sampled answers that ended at `max_tokens`."""
    judge: JsonValue = None
    """Who it was."""
    sampler: JsonValue = None
    """Who it was; None: nobody was asked for candidates."""


def write_results(config: LabelConfig, results: Results) -> dict[str, Any]:
    """Write every file, each whole or as it was, the card last; returns the card."""
    folder = config.output
    preferences = [_preference(*one) for one in results.outcomes if one[1].winner != "tie"]
    ties = [_tie(*one) for one in results.outcomes if one[1].winner == "tie"]
    left_out = [{"record": one.line, "reason": one.reason} for one in results.left_out]
    files = {PREFERENCES: preferences, TIES: ties, LEFT_OUT: left_out}
    hashes = {name: _write_lines(folder / name, lines) for name, lines in files.items()}
    counts = {
        "records": results.records,
        "preferences": len(preferences),
        "ties": len(ties),
        "left_out": len(left_out),
        "cut_candidates": results.cut_candidates,
    }
    costs = {purpose: vars(cost) for purpose, cost in results.costs.items()}
    respondents = {"judge": results.judge, "candidates": results.sampler}
    found = card(config, results.outcomes, counts, costs, respondents)
    found["files"] = hashes
    for name, text in ((CARD_PAGE, card_page(found)), (CARD, json.dumps(found, indent=2) + "\n")):
        with replace_file(folder / name) as file:
            file.write(text.encode())
    return found


def _preference(pair: Pair, outcome: Outcome) -> dict[str, Any]:
    chosen, rejected = (pair.a, pair.b) if outcome.winner == "a" else (pair.b, pair.a)
    line = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
    line |= {"probability": round(outcome.probability, 6), "record": pair.line}
    if pair.human is None:
        return line
    human = "tie" if pair.human == "tie" else "chosen" if pair.human == outcome.winner else "rejected"
    return {**line, "human": human}


def _tie(pair: Pair, outcome: Outcome) -> dict[str, Any]:
    """The first probability is that of the first answer being better. The ranks keep anybody who trains on
    the file from taking the first answer for the best."""
    probability = round(outcome.probability_a, 6)
    line = {"prompt": pair.prompt, "responses": [pair.a, pair.b], "ranks": [1, 1]}
    line |= {"probabilities": [probability, round(1 - probability, 6)], "orders": outcome.by_order}
    human = {} if pair.human is None else {"human": pair.human}
    return {**line, "record": pair.line, **human}


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> str:
    """Returns the file's SHA-256."""
    digest = hashlib.sha256()
    with replace_file(path) as file:
        for line in lines:
            content = f"{json.dumps(line, ensure_ascii=False)}\n".encode()
            digest.update(content)
            file.write(content)
    return digest.hexdigest()
