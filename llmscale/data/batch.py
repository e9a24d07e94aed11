"""The unit of work of the engine: one microbatch of token sequences.

Shapes: B rows in the microbatch, S tokens in a row, L documents of the fullest row, padding not counted;
C tokens that count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
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
    document_before: tuple[tuple[int, ...], ...] | None = None
    """Of each document how many tokens it goes on from that lie elsewhere in its row: 0, or the length of the
    last document before it that goes on from none, all of which it sees. None: 0 for all."""
    padding: int = 0
    """Tokens that only fill the rows."""
    counted_C: Tensor | None = None
    """int64, places in [S, B] of the tokens whose label counts, and of a few others: logits are computed of
    these only. None: of all."""
    targets_BL: Tensor | None = None
    """float32, what is to be told of each document (its label's number, or the number itself), one column a
    document of the fullest row; not-a-number in rows with fewer. Only of classification: there the loss mask
    marks the last token of each document."""
    group_BL: Tensor | None = None
    """int64, which group of its row each document belongs to: 0, 1, 2, … in order, -1 where a row has no such
    document. This and what follows: of preferences only, and None where all rows only fill a validation up.
    A group is never cut: its documents follow each other in one row. `targets_BL` is then the label (1 or 0)
    of the answers of unpaired records, and not-a-number for every other document, or None. The loss mask
    marks the answers' tokens (`task: dpo`) or the last token of each document (`task: reward`)."""
    role_BL: Tensor | None = None
    """int64, 0: the best (chosen) answer, always the first document of its group and the only 0 in it; above:
    less preferred, the higher the less, equal where nobody said which is better. Of `dpo.loss: kto` 0 is the
    answer, and 1 another prompt's answer to the same prompt, for the estimate of KL. -1: no such document."""
    margin_BL: Tensor | None = None
    """float32, by how much the best answer of the group is said to be better than this one; 0 where nothing
    is said."""
    reference_BL: Tensor | None = None
    """float64, log-probability that the reference model gives to the learned tokens of each document, summed;
    not-a-number where it is not known."""
    document_BL: Tensor | None = None
    """int64, number of each document in its prepared data, -1: no such document."""
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    """What reinforcement learning knows of each label, by name (`llmscale.objectives.rl.signals`): floats,
    [B, S], 0 where nothing is known."""

    def to(self, device: torch.device) -> "Batch":
        tensors = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        signals = {name: value.to(device, non_blocking=True) for name, value in self.signals.items()}
        return replace(self, **tensors, signals=signals)
