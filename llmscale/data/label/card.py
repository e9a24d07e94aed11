"""The data card: who judged what by which principles, what came out, and how far it can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import JsonValue

import llmscale
from llmscale.data.label.agreement import CLASSES, agreement, longer_chosen, position
from llmscale.data.label.options import LabelConfig
from llmscale.data.label.pairs import Pair
from llmscale.data.label.verdict import Outcome, Winner


def card(
    config: LabelConfig,
    outcomes: Sequence[tuple[Pair, Outcome]],
    counts: Mapping[str, int],
    costs: Mapping[str, Mapping[str, int]],
    respondents: Mapping[str, JsonValue],
) -> dict[str, Any]:
    """Everything that `card_page` says, as JSON takes it."""
    labelled: list[tuple[Winner, Winner]] = [
        (pair.human, outcome.winner) for pair, outcome in outcomes if pair.human is not None
    ]
    verdicts = [verdict for _, outcome in outcomes for verdict in outcome.verdicts]
    return {
        "llmscale": llmscale.__version__,
        "counts": dict(counts),
        "agreement": asdict(agreement(labelled)) if labelled else None,
        "position": asdict(position(outcome for _, outcome in outcomes)),
        "longer_chosen": longer_chosen(outcomes),
        "graded": sum(verdict.is_graded for verdict in verdicts) / len(verdicts) if verdicts else None,
        "costs": {purpose: dict(cost) for purpose, cost in costs.items()},
        "respondents": dict(respondents),
        "config": config.model_dump(mode="json"),
    }


def card_page(found: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    config, counts = found["config"], found["counts"]
    parts = [
        "# Preferences by a judge",
        f"Made by `llmscale data label` ({found['llmscale']}) from `{config['records']}`.",
        _table(("", ""), _summary(found, config, counts)),
        "## Against human labels",
        _agreement(found["agreement"]),
        "## What the judge likes",
        _table(("", ""), _likings(found)),
        "## Principles",
        "\n".join(f"{number}. {one}" for number, one in enumerate(config["constitution"], 1)) or "None.",
        "## The judge's question",
        _block(config["judge"]["template"]),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(found: Mapping[str, Any], config: Mapping[str, Any], counts: Mapping[str, int]) -> Any:
    yield "judge", _named(config["judge"])
    if config["candidates"]:
        yield "candidates by", _named(config["candidates"])
    yield "records", f"{counts['records']:,}"
    yield "preferences", f"{counts['preferences']:,}"
    yield "ties, kept apart", f"{counts['ties']:,}"
    yield "left out", f"{counts['left_out']:,}"
    if counts["cut_candidates"]:
        yield "candidates cut at their longest", f"{counts['cut_candidates']:,}"
    orders = "both, a tie unless they agree" if config["reconcile"] == "agree" else "both, their mean"
    yield "orders asked", orders if config["both_orders"] else "one"
    yield "verdicts with a probability of the model's", _percent(found["graded"])
    for purpose, cost in found["costs"].items():
        if cost["requests"]:
            yield f"cost of the {purpose}", f"{cost['requests']:,} answers, {cost['tokens']:,} tokens"


def _agreement(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "The records have none, so nothing is known of it."
    interval = found["accuracy_interval"]
    between = f" (95 %: {_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
    kappa = "not defined: all is of one class" if found["kappa"] is None else f"{found['kappa']:.3f}"
    rows = [
        ("pairs that humans have judged", f"{found['pairs']:,}"),
        ("of them decided by both", f"{found['decided']:,}"),
        ("accuracy on those", f"{_percent(found['accuracy'])}{between}"),
        ("Cohen's κ, ties a class of their own", kappa),
    ]
    confusion = [(f"human: {name}", *map(str, row)) for name, row in zip(CLASSES, found["confusion"])]
    heads = ("", *(f"judge: {name}" for name in CLASSES))
    said = "The two answers of a pair are called a and b by a hash of them, whichever the human chose."
    return "\n\n".join([_table(("", ""), rows), said, _table(heads, confusion)])


def _likings(found: Mapping[str, Any]) -> Any:
    place = found["position"]
    yield "verdicts for the answer shown first", f"{_percent(place['first_chosen'])} of {place['verdicts']:,}"
    yield "pairs judged the same in both orders", _percent(place["consistent"])
    yield "pairs where the first won in both orders", f"{place['always_first']:,}"
    yield "pairs where the second won in both orders", f"{place['always_second']:,}"
    yield "preferences for the longer answer", _percent(found["longer_chosen"])


def _named(section: Mapping[str, Any]) -> str:
    return f"{section['name']} at {section['endpoint']}" if section["endpoint"] else str(section["model"])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _table(heads: Sequence[str], rows: Any) -> str:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _block(text: str) -> str:
    """As it stands, fenced by more backticks than it has."""
    fence = "````" if "```" not in text else "`" * 8
    return f"{fence}\n{text.rstrip()}\n{fence}"
