"""What training minimises: a sum over tokens and the count of them. Divisors are the engine's alone."""

from typing import Protocol

from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel


class Objective(Protocol):
    """Turns the last stage's output for one microbatch into a loss to be summed."""

    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Sum of the loss over what counts, a scalar; the same on every tensor rank.

        Args:
            model: the chunk that made `output`.
            output: what its forward returned (logits [S, B, V / tensor ranks]).
            batch: the microbatch.
        """
        ...

    def count(self, batch: Batch) -> float:
        """How many terms that sum has; the mean loss divides by the count of the whole global batch."""
        ...
