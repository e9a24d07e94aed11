"""The unit of work of the engine: one microbatch of token sequences.

Shapes: B rows in the microbatch, S tokens in a row.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One microbatch, in CPU memory as the loader makes it."""

    tokens_BS: Tensor
    """int64, what the model reads. Below 0: virtual token -1 - i, whose embedding a PEFT method has."""
    labels_BS: Tensor
    """int64, the token that follows each of `tokens_BS` (what stands where none counts is not looked at)."""
    loss_mask_BS: Tensor
    """float32, 1 where the label counts and 0 where it does not."""
    position_ids_BS: Tensor
    """int64, each token's place in its document: 0, 1, 2, …"""
    document_lengths: tuple[tuple[int, ...], ...] | None = None
    """Of the documents packed into each row, in order; they fill it, padding being the last one. None: each
    row is one document."""
    padding: int = 0
    """Tokens that only fill the rows."""
    targets_BL: Tensor | None = None
    """float32, what is to be told of each document (its label's number, or the number itself), one column a
    document of the fullest row; not-a-number in rows with fewer. Only of classification: there the loss mask
    marks the last token of each document."""
