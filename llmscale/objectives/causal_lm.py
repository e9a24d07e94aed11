"""Next-token prediction: cross-entropy of every token that the loss mask counts."""

from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.label_losses import label_losses
from llmscale.objectives.objective import Objective


class CausalLM(Objective):
    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        losses_BS = label_losses(model, output, batch)
        return (losses_BS * batch.loss_mask_BS).sum()

    def count(self, batch: Batch) -> float:
        return float(batch.loss_mask_BS.sum())
