"""One row of a batch as a source of data makes it, and rows as a batch.

Shapes: S tokens of a row, B rows, L documents of the fullest row, C tokens that count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from llmscale.data.batch import Batch

LENGTH_UNIT = 8
"""Rows that may be shortened keep a multiple of so many tokens: matrices of odd sizes are slow. So it is with
the tokens that logits are computed of."""


@dataclass(frozen=True)
class Member:
    """A document of a group of answers; see `Batch`, whose fields are named alike."""

    group: int
    role: int
    margin: float = 0.0
    reference: float = math.nan
    document: int = -1


NOBODY = Member(group=-1, role=-1)


@dataclass(frozen=True)
class Row:
    """S tokens, the labels that follow them, and what `Batch` says of both."""

    tokens_S: Tensor
    labels_S: Tensor
    loss_mask_S: Tensor
    position_ids_S: Tensor
    document_lengths: tuple[int, ...] | None = None
    """They fill the row; the last one is its padding, where there is some."""
    document_before: tuple[int, ...] | None = None
    padding: int = 0
    """Tokens at the end that only fill the row."""
    targets: tuple[float, ...] = ()
    """One a document, of classification."""
    members: tuple[Member, ...] = ()
    """One a document, of preferences."""
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    """[S] each, of reinforcement learning."""


def empty_row(length: int) -> Row:
    """A row in which nothing counts, nor is anything to be told of it."""
    nothing = torch.zeros(length, dtype=torch.int64)
    positions = torch.arange(length)
    return Row(nothing, nothing, nothing.float(), positions, padding=length, targets=(math.nan,))


class RowSource(Protocol):
    """Rows of one data set, in an order of its own for each epoch."""

    @property
    def samples_per_epoch(self) -> int: ...

    def sample(self, epoch: int, sample: int) -> Row:
        """Row number `sample` in the order of `epoch`."""
        ...


def batch_of(rows: Sequence[Row]) -> Batch:
    """The rows as one microbatch."""
    is_packed = any(row.document_lengths is not None for row in rows)
    loss_mask_BS = torch.stack([row.loss_mask_S for row in rows])
    return Batch(
        tokens_BS=torch.stack([row.tokens_S for row in rows]),
        labels_BS=torch.stack([row.labels_S for row in rows]),
        loss_mask_BS=loss_mask_BS,
        position_ids_BS=torch.stack([row.position_ids_S for row in rows]),
        document_lengths=tuple(row.document_lengths or (len(row.tokens_S),) for row in rows)
        if is_packed
        else None,
        document_before=_before(rows),
        padding=sum(row.padding for row in rows),
        counted_C=_counted(loss_mask_BS),
        targets_BL=_targets(rows) if any(row.targets for row in rows) else None,
        **(_members(rows) if any(row.members for row in rows) else {}),
        signals=_signals(rows),
    )


def _before(rows: Sequence[Row]) -> tuple[tuple[int, ...], ...] | None:
    if not any(any(row.document_before or ()) for row in rows):
        return None
    return tuple(row.document_before or (0,) * len(row.document_lengths or (0,)) for row in rows)


def _counted(loss_mask_BS: Tensor) -> Tensor | None:
    """See `Batch.counted_C`; a multiple of `LENGTH_UNIT`, and never none."""
    counts_T = loss_mask_BS.T.flatten() > 0
    counted, others = counts_T.nonzero()[:, 0], counts_T.logical_not().nonzero()[:, 0]
    wanted = max(1, -(-len(counted) // LENGTH_UNIT)) * LENGTH_UNIT
    if wanted >= len(counts_T):
        return None
    return torch.cat((counted, others[: wanted - len(counted)]))


def _signals(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Every name that one of the rows has; 0 in the others."""
    known = {name: signal_S.dtype for row in rows for name, signal_S in row.signals.items()}
    length = len(rows[0].tokens_S)
    return {
        name: torch.stack([row.signals.get(name, torch.zeros(length, dtype=dtype)) for row in rows])
        for name, dtype in known.items()
    }


def _members(rows: Sequence[Row]) -> dict[str, Tensor]:
    """`NOBODY` where a row has fewer documents than another."""
    columns = max(len(row.members) for row in rows)
    table = [[*row.members, *[NOBODY] * (columns - len(row.members))] for row in rows]

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[getattr(member, name) for member in row] for row in table], dtype=dtype)

    return {
        "group_BL": column("group", torch.int64),
        "role_BL": column("role", torch.int64),
        "margin_BL": column("margin", torch.float32),
        "reference_BL": column("reference", torch.float64),
        "document_BL": column("document", torch.int64),
    }


def _targets(rows: Sequence[Row]) -> Tensor:
    """Not-a-number where a row has fewer documents than another."""
    columns = max(len(row.targets) for row in rows)
    return torch.tensor([[*row.targets, *[math.nan] * (columns - len(row.targets))] for row in rows])


def by_length(rows: Sequence[Row], micro_batch_size: int) -> list[list[Row]]:
    """The rows of a step as microbatches of rows of much the same length, so that little of them is padding.
    Each row counts as before, as a step's loss is one mean over all of its tokens."""
    ordered = sorted(rows, key=_used)
    return [ordered[start : start + micro_batch_size] for start in range(0, len(ordered), micro_batch_size)]


def shortened(rows: Sequence[Row], unit: int) -> list[Row]:
    """The rows without the padding that all of them have, a multiple of `unit` tokens long."""
    whole = len(rows[0].tokens_S)
    used = max(1, *map(_used, rows))
    length = min(whole, -(-used // unit) * unit)
    return [_cut(row, length) for row in rows]


def _used(row: Row) -> int:
    return len(row.tokens_S) - row.padding


def _cut(row: Row, length: int) -> Row:
    removed = len(row.tokens_S) - length
    if not removed:
        return row
    lengths = row.document_lengths
    if lengths is not None:
        rest = lengths[-1] - removed
        lengths = (*lengths[:-1], *([rest] if rest else []))
    before = row.document_before
    if before is not None and lengths is not None:
        before = before[: len(lengths)]
    return replace(
        row,
        tokens_S=row.tokens_S[:length],
        labels_S=row.labels_S[:length],
        loss_mask_S=row.loss_mask_S[:length],
        position_ids_S=row.position_ids_S[:length],
        document_lengths=lengths,
        document_before=before,
        padding=row.padding - removed,
        signals={name: signal_S[:length] for name, signal_S in row.signals.items()},
    )
