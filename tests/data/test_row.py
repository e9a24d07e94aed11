"""Rows are dealt to microbatches so that little is padding, and none is lost or changed."""

import random
from dataclasses import replace

import torch

from llmscale.data.row import Row, batch_of, by_length, shortened

WHOLE = 64


def row_of(length: int, name: int) -> Row:
    tokens_S = torch.zeros(WHOLE, dtype=torch.int64)
    tokens_S[:length] = name
    mask_S = (tokens_S != 0).float()
    return Row(
        tokens_S, tokens_S, mask_S, torch.arange(WHOLE), (length, WHOLE - length), padding=WHOLE - length
    )


def test_rows_of_a_step_are_dealt_by_length() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, WHOLE - 1) for _ in range(24)]
    rows = [row_of(length, 1 + place) for place, length in enumerate(lengths)]
    parts = [shortened(part, 8) for part in by_length(rows, 4)]
    assert [len(part) for part in parts] == [4] * 6
    batches = [batch_of(part) for part in parts]
    found = {}
    for batch in batches:
        used = [int(mask_S.sum()) for mask_S in batch.loss_mask_BS]
        assert batch.tokens_BS.shape[1] == -(-max(used) // 8) * 8
        assert batch.padding == batch.tokens_BS.numel() - sum(used)
        assert all(sum(row) == batch.tokens_BS.shape[1] for row in batch.document_lengths or ())
        found |= {int(tokens_S[0]): length for tokens_S, length in zip(batch.tokens_BS, used) if length}
    assert found == dict(enumerate(lengths, 1))
    as_they_come = [batch_of(shortened(rows[start : start + 4], 8)) for start in range(0, 24, 4)]
    assert sum(b.padding for b in batches) < sum(b.padding for b in as_they_come) / 2


def test_a_row_that_is_nothing_but_padding_keeps_a_unit() -> None:
    assert [len(row.tokens_S) for row in shortened([row_of(0, 1), row_of(0, 2)], 8)] == [8, 8]


def test_signals_go_with_their_tokens() -> None:
    """Shortened as those are, and 0 in rows that have none of the name."""
    known = {"advantages": torch.arange(float(WHOLE)), "values": torch.ones(WHOLE, dtype=torch.float64)}
    rows = [replace(row_of(9, 1), signals=known), row_of(5, 2)]
    batch = batch_of(shortened(rows, 8))
    assert batch.signals["advantages"].tolist() == [list(range(16)), [0] * 16]
    assert batch.signals["values"].tolist() == [[1.0] * 16, [0.0] * 16]
    assert batch.signals["values"].dtype == torch.float64
    moved = batch.to(torch.device("meta"))
    assert {signal.device.type for signal in moved.signals.values()} == {"meta"}
    assert batch_of(rows[1:]).signals == {}
