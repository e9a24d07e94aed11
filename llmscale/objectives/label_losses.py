"""What each label of a batch costs, whether logits were computed of all tokens or of those that count.

Shapes: S sequence, B rows, V vocabulary, C tokens that logits are computed of.
"""

from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.model.logprobs import token_losses, token_losses_and_entropies


def label_losses(model: LanguageModel, logits: Tensor, batch: Batch) -> Tensor:
    """Negative log-probability of each label, [B, S], float32 (float64 for float64 logits); 0 of tokens that
    the logits leave out.

    Args:
        model: the chunk that made the logits.
        logits: this tensor rank's columns, [S, B, V], or [C, 1, V] of the tokens of `batch.counted_C`.
    """
    losses = token_losses(model, logits, _labels(logits, batch))
    return _of_all_tokens(losses, batch)


def label_losses_and_entropies(
    model: LanguageModel, logits: Tensor, batch: Batch, temperature: float
) -> tuple[Tensor, Tensor]:
    """As `label_losses`, and the entropy in nats of what could have stood in each label's place, of a model
    that answers at `temperature`."""
    losses, entropies = token_losses_and_entropies(model, logits, _labels(logits, batch), temperature)
    return _of_all_tokens(losses, batch), _of_all_tokens(entropies, batch)


def _labels(logits: Tensor, batch: Batch) -> Tensor:
    """[S, B], or [C, 1], as the logits are."""
    labels_SB = batch.labels_BS.T
    if batch.counted_C is None or logits.shape[:2] == labels_SB.shape:
        return labels_SB
    return labels_SB.flatten()[batch.counted_C][:, None]


def _of_all_tokens(values: Tensor, batch: Batch) -> Tensor:
    """[B, S]."""
    rows, length = batch.labels_BS.shape
    if batch.counted_C is None or values.shape == (length, rows):
        return values.T
    values_T = values.new_zeros(length * rows).index_copy(0, batch.counted_C, values[:, 0])
    return values_T.view(length, rows).T
