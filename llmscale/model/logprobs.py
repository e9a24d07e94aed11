"""Log-probabilities from what the last chunk returns, whose vocabulary is split over the tensor ranks: the
only place that knows how."""

from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.linear_cross_entropy import Vocabulary, linear_cross_entropy
from torch import Tensor

from llmscale.model.entropy import cross_entropy_and_entropy
from llmscale.model.language_model import LanguageModel


def token_losses(model: LanguageModel, output_SBX: Tensor, labels_SB: Tensor) -> Tensor:
    """Negative log-probability of each label, [S, B], float32 (float64 for float64 logits).

    Args:
        model: the chunk that made the output: knows the split and the padding of the vocabulary.
        output_SBX: this tensor rank's columns of the logits, or hidden states if it leaves the logits.
        labels_SB: int64, in the true vocabulary.
    """
    whole = _vocabulary(model)
    output_TX, labels_T = output_SBX.flatten(0, 1), labels_SB.flatten()
    if model.leaves_logits(len(labels_T)):
        losses_T, _ = linear_cross_entropy(output_TX, model.output_weight, labels_T, whole)
    else:
        losses_T = cross_entropy(output_TX, labels_T, *whole)
    return losses_T.view(labels_SB.shape)


def token_losses_and_entropies(
    model: LanguageModel, output_SBX: Tensor, labels_SB: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """As `token_losses`, and the entropy in nats at each token, of a model that answers at `temperature`."""
    whole = _vocabulary(model)
    output_TX, labels_T = output_SBX.flatten(0, 1), labels_SB.flatten()
    if model.leaves_logits(len(labels_T)):
        losses_T, entropies_T = linear_cross_entropy(
            output_TX, model.output_weight, labels_T, whole, temperature, with_entropy=True
        )
        assert entropies_T is not None
    else:
        losses_T, entropies_T = cross_entropy_and_entropy(output_TX, labels_T, temperature, *whole)
    return losses_T.view(labels_SB.shape), entropies_T.view(labels_SB.shape)


def _vocabulary(model: LanguageModel) -> Vocabulary:
    """This tensor rank's part of it."""
    group = model.world.tensor_group
    local_columns = model.vocab_size // group.size()
    first_column = local_columns * model.world.coordinates.tensor
    columns = max(0, min(local_columns, model.true_vocabulary_size - first_column))
    return Vocabulary(first_column, columns, group)
