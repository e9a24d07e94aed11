"""Log-probabilities of whole answers, from logits whose vocabulary is split over the tensor ranks.

Shapes: S sequence, B rows, L documents of the fullest row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.label_losses import label_losses


@dataclass(frozen=True)
class DocumentLogProbabilities:
    """Of the documents of a microbatch; 0 where a row has fewer than another."""

    log_probabilities_BL: Tensor
    """float64, summed over the learned tokens of each document, given all that stands before them."""
    learned_tokens_BL: Tensor
    """float64, how many those are."""


def document_log_probabilities(
    model: LanguageModel, logits: Tensor, batch: Batch
) -> DocumentLogProbabilities:
    """What the model gives to the learned tokens of each document; tokens of the prompt count by
    `batch.loss_mask_BS`, by their place, not by what they are.

    Gradients are right under tensor parallelism, and the result is the same on every tensor rank.

    Args:
        model: the chunk that made the logits.
        logits: this tensor rank's columns, of all tokens or of `batch.counted_C`.
    """
    losses_BS = label_losses(model, logits, batch)
    return DocumentLogProbabilities(
        # A selection, not a product: what a token of padding costs may be infinite.
        sums_of_documents(torch.where(batch.loss_mask_BS > 0, -losses_BS, 0.0), batch),
        sums_of_documents(batch.loss_mask_BS, batch),
    )


def sums_of_documents(values_BS: Tensor, batch: Batch) -> Tensor:
    """The sum over each document, [B, L] as in `batch.group_BL`.

    In float64: the difference of two log-probabilities of hundreds is what is learned from, and float32 has
    left five digits of it.
    """
    rows, length = values_BS.shape
    lengths = batch.document_lengths or ((length,),) * rows
    every_document = torch.tensor([one for row in lengths for one in row], device=values_BS.device)
    sums = torch.segment_reduce(values_BS.double().reshape(-1), "sum", lengths=every_document)
    sums_BL = pad_sequence(list(sums.split([len(row) for row in lengths])), batch_first=True)
    columns = 0 if batch.group_BL is None else batch.group_BL.shape[1]
    return sums_BL[:, :columns]  # the others are padding
