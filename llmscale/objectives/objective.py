"""What training minimises: a sum over terms and the count of them. Divisors are the engine's alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
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

    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """`loss_sum` and `sums`; for an objective that finds both on the way."""
        loss = self.loss_sum(model, output, batch)
        with torch.no_grad():
            sums = self.sums(model, output, batch)
        return loss, sums

    @property
    def has_reference(self) -> bool:
        """It reads `Batch.reference_BL`."""
        return False

    @property
    def ahead_count(self) -> int:
        """How many numbers `ahead` gives. Above 0, the engine runs the microbatches of each global batch
        forward once before, without gradient."""
        return 0

    def ahead(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Sums over the microbatch, [`ahead_count`], of which every loss of the global batch needs the whole;
        the same on every tensor rank."""
        return output.new_zeros(0)

    def begin(self, sums: Sequence[float]) -> None:
        """Take the sums of `ahead` over the global batch and all ranks, before its first loss."""
        return

    @property
    def for_fingerprint(self) -> "Objective":
        """The one that a fingerprint is taken by: its batch is one text, and not of groups."""
        return self

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """Names and values made of the sums over a whole global batch, or over a whole validation."""
        return {}
