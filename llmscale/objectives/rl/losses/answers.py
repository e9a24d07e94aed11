"""The answers in a batch, in rows of one document or of several: sums over each, and back to its tokens.

Shapes: B rows, S tokens, D documents of the microbatch, padding being some of them.
"""

import torch
from torch import Tensor

from llmscale.data.batch import Batch


class Answers:
    """Documents of a batch, and the tokens of them that are learned."""

    def __init__(self, batch: Batch) -> None:
        rows, length = batch.tokens_BS.shape
        lengths = batch.document_lengths or ((length,),) * rows
        device = batch.loss_mask_BS.device
        self.learned_BS = batch.loss_mask_BS > 0
        self._length_D = torch.tensor([one for row in lengths for one in row], device=device)
        self.tokens_D = self.sums(self.learned_BS.double())
        """How many of each document are learned, float64; 0 of padding."""

    @property
    def count(self) -> float:
        """Documents of which something is learned."""
        return float((self.tokens_D > 0).sum())

    def sums(self, values_BS: Tensor) -> Tensor:
        """Over each document, [D].

        Args:
            values_BS: 0 where nothing is learned.
        """
        return torch.segment_reduce(values_BS.reshape(-1), "sum", lengths=self._length_D)

    def spread(self, values_D: Tensor) -> Tensor:
        """To every token of each document, [B, S]."""
        return values_D.repeat_interleave(self._length_D).view(self.learned_BS.shape)
