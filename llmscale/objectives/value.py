"""The critic of reinforcement learning: at each token what the rest of the answer will be worth.

Shapes: B rows, S tokens.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import JsonValue
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.objective import Objective
from llmscale.objectives.regress import Regress
from llmscale.objectives.rl.losses.normalisation import weighted_sum
from llmscale.objectives.rl.losses.value import value_loss
from llmscale.objectives.rl.signals import RETURNS, VALUES, signal
from llmscale.objectives.rl.told import token_values


class Value(Objective):
    """Every learned token counts the same.

    Args:
        clip: by how much a value may change from what it was until nothing is learned; None: by any.
    """

    def __init__(self, clip: float | None) -> None:
        self.clip = clip

    @property
    def for_fingerprint(self) -> Objective:
        return Regress()

    def count(self, batch: Batch) -> float:
        return float((batch.loss_mask_BS > 0).sum())

    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return self.loss_and_sums(model, output, batch)[0]

    @property
    def sum_count(self) -> int:
        return 7

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Tokens, clipped ones, values, and what the variances are made of."""
        return self.loss_and_sums(model, output, batch)[1]

    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """
        Raises:
            ValueError: the batch lacks a signal.
        """
        values_BS = token_values(output, batch)
        returns_BS = signal(batch, RETURNS).to(values_BS)
        # Values of before bound the step only.
        old_BS = values_BS.detach() if self.clip is None else signal(batch, VALUES).to(values_BS)
        found = value_loss(values_BS, old_BS, returns_BS, self.clip)
        learned_BS = batch.loss_mask_BS > 0
        loss = weighted_sum(found.loss, learned_BS.double())
        with torch.no_grad():
            value_BS, return_BS = values_BS.double(), returns_BS.double()
            error_BS = return_BS - value_BS
            errors = (error_BS, error_BS.square())
            returns = (return_BS, return_BS.square())
            columns = (torch.ones_like(value_BS), found.is_clipped.double(), value_BS, *errors, *returns)
            figures = torch.stack([torch.where(learned_BS, column, 0.0).sum() for column in columns])
        return loss, figures

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """Means over tokens: `value_loss` (squared error / 2, not clipped), `value_clip_share`, `value_mean`,
        `return_mean`; and `explained_variance`, 1 − the variance of return − value by that of returns: 1 for
        a critic that knows, 0 for one that says the same of everything, None where all returns are equal."""
        tokens, clipped, value, error, squared, returns, returns_2 = sums
        count = max(tokens, 1.0)
        of_error = squared / count - (error / count) ** 2
        of_returns = returns_2 / count - (returns / count) ** 2
        # Below the rounding of such sums a variance is none.
        varies = of_returns > 1e-12 * returns_2 / count
        return {
            "value_loss": squared / count / 2,
            "value_clip_share": clipped / count,
            "value_mean": value / count,
            "return_mean": returns / count,
            "explained_variance": 1 - of_error / of_returns if varies else None,
        }
