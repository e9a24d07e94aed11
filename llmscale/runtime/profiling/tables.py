"""A breakdown as tables for a terminal or a page. No torch."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from llmscale.runtime.profiling.breakdown import Breakdown, Operation
from llmscale.runtime.profiling.kinds import KINDS, Kind
from llmscale.runtime.profiling.phases import ORDER, Phase

Cells = tuple[Sequence[str], list[tuple[str, ...]]]
"""Heads, and rows."""
SHOWN_ALLOCATORS = 5
SLOWEST = "Operations that take longest in a step, without those that they are made of"
LARGEST = "Operations that ask for most memory in a step"


def shown(found: Breakdown) -> Group:
    """All tables, for a terminal."""
    parts = {
        f"{title(found)}: milliseconds a step": kind_table(found),
        SLOWEST: slowest_table(found),
        f"{LARGEST}; {peak(found)}": memory_table(found),
    }
    return Group(*(part for heading, cells in parts.items() for part in ("", heading, _table(cells))), "")


def title(found: Breakdown) -> str:
    where = f"rank {found.rank}" + (f", pipeline stage {found.stage}" if found.stage else "")
    return f"{found.steps[0].upper()}{found.steps[1:]} of {where}"


def peak(found: Breakdown) -> str:
    """Most memory at one time, in words."""
    texts = [
        f"at most {_mebibytes(size)} MiB at a time "
        + ("of new tensors" if device == "cpu" else f"on {device}")
        for device, size in found.peak_bytes.items()
        if size
    ]
    return ", ".join(texts) or "none is new"


def kind_table(found: Breakdown) -> Cells:
    """A row a kind of operation, a column a phase."""
    phases: list[Phase] = [phase for phase in ORDER if phase in found.seconds]
    kinds: list[Kind] = sorted(
        (kind for kind in KINDS if found.seconds_of(kind) or found.device_seconds.get(kind)),
        key=lambda kind: -found.seconds_of(kind),
    )
    on_device = ("GPU",) if found.device_seconds else ()
    rows = [
        (
            kind,
            *(_milliseconds(found.seconds[phase].get(kind, 0.0)) for phase in phases),
            *_total(found.seconds_of(kind), found),
            *(_milliseconds(found.device_seconds.get(kind, 0.0)) for _ in on_device),
        )
        for kind in kinds
    ]
    sums = [sum(found.seconds[phase].values()) for phase in phases]
    of_device = [_milliseconds(sum(found.device_seconds.values())) for _ in on_device]
    rows.append(("step", *map(_milliseconds, sums), *_total(found.step_seconds, found), *of_device))
    return ("", *phases, "total", "share", *on_device), rows


def slowest_table(found: Breakdown) -> Cells:
    rows = [
        (_named(one), one.kind, one.shapes, _count(one.calls), *_total(one.seconds, found))
        for one in found.slowest
    ]
    return ("operation", "kind", "shapes of its inputs", "calls", "ms", "share"), rows


def memory_table(found: Breakdown) -> Cells:
    rows = [
        (_named(one), one.kind, one.shapes, _count(one.calls), _mebibytes(one.bytes))
        for one in found.largest[:SHOWN_ALLOCATORS]
        if one.bytes
    ]
    return ("operation", "kind", "shapes of its inputs", "calls", "MiB"), rows


TEXTS = ("", "operation", "kind", "shapes of its inputs")
"""Heads of columns that are no numbers."""


def _table(cells: Cells) -> Table:
    heads, rows = cells
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, justify="left" if head in TEXTS else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def _named(one: Operation) -> str:
    return one.name.removeprefix("aten::")


def _total(seconds: float, found: Breakdown) -> tuple[str, str]:
    return _milliseconds(seconds), f"{seconds / found.step_seconds:.1%}"


def _milliseconds(seconds: float) -> str:
    """With three digits, or none where there is nothing."""
    value = seconds * 1e3
    if not value:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f}"


def _count(calls: float) -> str:
    return f"{calls:,.0f}" if calls == round(calls) else f"{calls:,.1f}"
