"""What each label of a batch costs, whether logits were computed of all tokens or of those that count.

Shapes: S sequence, B rows, V vocabulary, C tokens that logits are computed of.
"""

from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.model.logprobs import token_losses


def label_losses(model: LanguageModel, logits: Tensor, batch: Batch) -> Tensor:
    """Negative log-probability of each label, [B, S], float32 (float64 for float64 logits); 0 of tokens that
    the logits leave out.

    Args:
        model: the chunk that made the logits.
        logits: this tensor rank's columns, [S, B, V], or [C, 1, V] of the tokens of `batch.counted_C`.
    """
    labels_SB = batch.labels_BS.T
    if batch.counted_C is None or logits.shape[:2] == labels_SB.shape:
        return token_losses(model, logits, labels_SB).T
    labels_C = labels_SB.flatten()[batch.counted_C]
    losses_C = token_losses(model, logits, labels_C[:, None])[:, 0]
    losses_T = losses_C.new_zeros(labels_SB.numel()).index_copy(0, batch.counted_C, losses_C)
    return losses_T.view(labels_SB.shape).T
