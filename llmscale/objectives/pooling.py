"""What a head says of whole texts: its scores at the last token of each.

The loss mask marks those tokens (what would follow is what is to be told), so rows of one text and rows of
several are the same here.

Shapes: S sequence, B batch, L scores, D texts of the microbatch: row after row, and in a row as they follow.
"""

import torch
from torch import Tensor

from llmscale.data.batch import Batch


def pooled_scores(scores_SBL: Tensor, batch: Batch) -> Tensor:
    """Scores of each text, [D, L], float32 (float64 for float64 scores)."""
    scores_DL = scores_SBL.transpose(0, 1)[batch.loss_mask_BS > 0]
    return scores_DL if scores_DL.dtype == torch.float64 else scores_DL.float()


def targets_of_texts(batch: Batch) -> Tensor:
    """What is to be told of each text, [D]."""
    if batch.targets_BL is None:  # of rows that only fill a validation up
        return batch.loss_mask_BS.new_zeros(0)
    return batch.targets_BL[batch.targets_BL.isfinite()]
