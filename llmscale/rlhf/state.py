"""Where a run of reinforcement learning stands, beside its models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue


@dataclass
class State:
    step: int = 0
    prompts: int = 0
    """Whose answers were learned from (or kept, with best_of_n); the next step takes the ones after them."""
    asked: int = 0
    """Those, and the ones whose answers are written and wait to be learned from."""
    tokens: int = 0
    """Learned from so far (best_of_n: kept)."""
    kl: dict[str, JsonValue] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "State":
        return cls(stored["step"], stored["prompts"], stored["asked"], stored["tokens"], dict(stored["kl"]))

    def as_json(self) -> dict[str, JsonValue]:
        counted = {"step": self.step, "prompts": self.prompts, "asked": self.asked, "tokens": self.tokens}
        return {**counted, "kl": dict(self.kl)}
