"""Log-probabilities from logits whose vocabulary is split over the tensor ranks: the only place that
knows how."""

from llmscale_kernels.cross_entropy import cross_entropy
from torch import Tensor

from llmscale.model.language_model import LanguageModel


def token_losses(model: LanguageModel, logits_SBV: Tensor, labels_SB: Tensor) -> Tensor:
    """Negative log-probability of each label, [S, B], float32 (float64 for float64 logits).

    Args:
        model: the chunk that made the logits: knows the split and the padding of the vocabulary.
        logits_SBV: this tensor rank's columns.
        labels_SB: int64, in the true vocabulary.
    """
    local_columns = logits_SBV.shape[-1]
    first_column = local_columns * model.world.coordinates.tensor
    losses_T = cross_entropy(
        logits_SBV.view(-1, local_columns),
        labels_SB.flatten(),
        first_column,
        max(0, min(local_columns, model.true_vocabulary_size - first_column)),
        model.world.tensor_group,
    )
    return losses_T.view(labels_SB.shape)
