"""What training minimises: a sum over terms and the count of them. Divisors are the engine's alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from pydantic import JsonValue
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel


class Objective(ABC):
    """Turns the last stage's output for one microbatch into a loss to be summed, and into other sums."""

    @abstractmethod
    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Sum of the loss over what counts, a scalar; the same on every tensor rank.

        Args:
            model: the chunk that made `output`.
            output: what its forward returned (logits [S, B, V / tensor ranks], or scores [S, B, outputs]).
            batch: the microbatch.
        """

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """How many terms that sum has; the mean loss divides by the count of the whole global batch."""

    @property
    def sum_count(self) -> int:
        """How many numbers `sums` gives."""
        return 0

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Other sums over the microbatch that metrics are made of, [`sum_count`], without gradient; the same
        on every tensor rank."""
        return output.new_zeros(0)

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """Names and values made of the sums over a whole global batch, or over a whole validation."""
        return {}
