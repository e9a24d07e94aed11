"""The weight of the divergence, steered so that the divergence comes to a target (arXiv:1909.08593, section
2.2):

    e = clip(KL / target − 1, −0.2, 0.2)
    β ← β · (1 + e · answers / horizon)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import JsonValue

from llmscale.config.rlhf import KlSection

LARGEST_ERROR = 0.2
MOST_CHANGE = 0.9
"""Of the coefficient at once, relative: with more answers a step than the horizon it would lose its sign."""


@dataclass(frozen=True)
class KlCoefficient:
    """The coefficient as it stands; the same for ever where the options have no target."""

    options: KlSection
    value: float

    @classmethod
    def first(cls, options: KlSection) -> "KlCoefficient":
        return cls(options, options.coefficient)

    def after(self, divergence: float, answers: int) -> "KlCoefficient":
        """The one of the next step.

        Args:
            divergence: nats an answer, the mean over the answers of this step.
            answers: how many those were.
        """
        if self.options.target is None:
            return self
        error = divergence / self.options.target - 1
        bounded = min(max(error, -LARGEST_ERROR), LARGEST_ERROR)
        change = bounded * answers / self.options.horizon
        return replace(self, value=self.value * (1 + min(max(change, -MOST_CHANGE), MOST_CHANGE)))

    def as_json(self) -> dict[str, JsonValue]:
        return {"coefficient": self.value}

    @classmethod
    def from_json(cls, options: KlSection, state: Mapping[str, JsonValue]) -> "KlCoefficient":
        """As it was saved; where there is no target, as the options say now.

        Raises:
            ValueError: the state holds no number.
        """
        value = state.get("coefficient")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the state of the KL coefficient has {value!r} in place of a number")
        return cls.first(options) if options.target is None else cls(options, float(value))
