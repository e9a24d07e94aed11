"""Which documents of a batch stand against each other: the best of a group against each of the others.

Shapes: B rows, L documents of the fullest row, G pairs: a group of several rejected answers has as many.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmscale.data.batch import Batch


@dataclass(frozen=True)
class PairPlaces:
    """Where the two sides of each pair are found."""

    chosen_of_BL: Tensor
    """int64, column of the best answer of each document's group."""
    is_rejected_BL: Tensor
    """bool, the document is the other side of a pair."""
    weight_G: Tensor
    """float64, one divided by the pairs of the group, so that every group counts once (the mean over the
    pairs of a prompt of arXiv:2203.02155, equation 1, with the best answer on one side)."""

    def chosen(self, values_BL: Tensor) -> Tensor:
        """[G]."""
        return values_BL.gather(1, self.chosen_of_BL)[self.is_rejected_BL]

    def rejected(self, values_BL: Tensor) -> Tensor:
        """[G], in the same order."""
        return values_BL[self.is_rejected_BL]


def groups_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Group and role of each document, [B, L]; no column where nothing in the batch counts."""
    if batch.group_BL is None or batch.role_BL is None:
        nothing = torch.zeros(len(batch.tokens_BS), 0, dtype=torch.int64, device=batch.tokens_BS.device)
        return nothing, nothing
    return batch.group_BL, batch.role_BL


def group_count(batch: Batch) -> int:
    """Groups of the batch: each has one document of role 0."""
    return int((groups_of(batch)[1] == 0).sum())


def pair_places(batch: Batch) -> PairPlaces:
    """All pairs, row after row."""
    group_BL, role_BL = groups_of(batch)
    shared_BLL = (group_BL[:, :, None] == group_BL[:, None, :]).long()
    is_rejected_BL = role_BL > 0
    if not group_BL.shape[1]:
        return PairPlaces(group_BL, is_rejected_BL, group_BL[is_rejected_BL].double())
    chosen_of_BL = (shared_BLL * (role_BL == 0)[:, None, :]).argmax(-1)
    pairs_BL = (shared_BLL * is_rejected_BL[:, None, :]).sum(-1)
    return PairPlaces(chosen_of_BL, is_rejected_BL, 1.0 / pairs_BL[is_rejected_BL].double())
