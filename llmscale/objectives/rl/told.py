"""What a model tells of the tokens of a batch, to be learned from later: called with the output of its last
stage, and the same on every tensor rank.

Shapes: B rows, S tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.label_losses import label_losses_and_entropies


class TokenFigures(NamedTuple):
    """[B, S] each, float32 (float64 of a model in float64), 0 where nothing is learned."""

    log_probabilities_BS: Tensor
    """Of the labels."""
    entropies_BS: Tensor
    """In nats, of what could have stood in their places."""


def token_figures(model: LanguageModel, output: Tensor, batch: Batch, temperature: float) -> TokenFigures:
    """
    Args:
        model: the chunk that made `output`.
        output: logits, of all tokens or of `batch.counted_C`.
        temperature: at which the model answers.
    """
    losses_BS, entropies_BS = label_losses_and_entropies(model, output, batch, temperature)
    learned_BS = batch.loss_mask_BS > 0
    # A selection, not a product: what a token of padding costs may be infinite.
    return TokenFigures(torch.where(learned_BS, -losses_BS, 0.0), torch.where(learned_BS, entropies_BS, 0.0))


def token_values(output: Tensor, batch: Batch) -> Tensor:
    """What a critic expects before each label, [B, S], float32 (float64 of a model in float64), 0 where
    nothing is learned.

    Args:
        output: scores of all tokens, [S, B, 1].
    """
    values_BS = output[..., 0].T
    wide_BS = values_BS if values_BS.dtype == torch.float64 else values_BS.float()
    return torch.where(batch.loss_mask_BS > 0, wide_BS, 0.0)
