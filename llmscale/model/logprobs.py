"""Log-probabilities from logits whose vocabulary is split over the tensor ranks: the only place that
knows how."""

from llmscale_kernels.cross_entropy import cross_entropy
from torch import Tensor

from llmscale.model.entropy import cross_entropy_and_entropy
from llmscale.model.language_model import LanguageModel


def token_losses(model: LanguageModel, logits_SBV: Tensor, labels_SB: Tensor) -> Tensor:
    """Negative log-probability of each label, [S, B], float32 (float64 for float64 logits).

    Args:
        model: the chunk that made the logits: knows the split and the padding of the vocabulary.
        logits_SBV: this tensor rank's columns.
        labels_SB: int64, in the true vocabulary.
    """
    losses_T = cross_entropy(
        logits_SBV.view(-1, logits_SBV.shape[-1]),
        labels_SB.flatten(),
        *_columns(model, logits_SBV),
        model.world.tensor_group,
    )
    return losses_T.view(labels_SB.shape)


def token_losses_and_entropies(
    model: LanguageModel, logits_SBV: Tensor, labels_SB: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """As `token_losses`, and the entropy in nats at each token, of a model that answers at `temperature`."""
    losses_T, entropies_T = cross_entropy_and_entropy(
        logits_SBV.view(-1, logits_SBV.shape[-1]),
        labels_SB.flatten(),
        temperature,
        *_columns(model, logits_SBV),
        model.world.tensor_group,
    )
    return losses_T.view(labels_SB.shape), entropies_T.view(labels_SB.shape)


def _columns(model: LanguageModel, logits_SBV: Tensor) -> tuple[int, int]:
    """Index in the whole vocabulary of this rank's first column, and how many of them are no padding."""
    local_columns = logits_SBV.shape[-1]
    first_column = local_columns * model.world.coordinates.tensor
    return first_column, max(0, min(local_columns, model.true_vocabulary_size - first_column))
