"""The best validation loss of a run so far, and whether it is time to stop. No torch.

All of it is in each checkpoint's progress, so a run that is resumed counts on where it stood.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from llmscale.config.tuning import EarlyStopping

KEY = "best"
"""Of a checkpoint's progress."""


@dataclass
class Best:
    """What validations have told so far."""

    step: int | None = None
    """Of the lowest loss; None before the first finite one."""
    loss: float | None = None
    """The lowest one."""
    to_beat: float | None = None
    """What the next loss must be better than by `min_delta`: the last one that was."""
    waited: int = 0
    """Validations in a row that were not better by so much."""
    validated_step: int | None = None
    """Of the newest validation."""

    @classmethod
    def of(cls, progress: Mapping[str, JsonValue]) -> "Best":
        """As a checkpoint's progress has it; one that knows of none begins anew."""
        found = progress.get(KEY)
        return cls(**found) if isinstance(found, dict) else cls()  # pyright: ignore[reportArgumentType]

    def as_progress(self) -> dict[str, JsonValue]:
        return {KEY: asdict(self)}

    def add(self, step: int, loss: float, min_delta: float = 0.0) -> bool:
        """Take in the loss of a validation; returns whether it is the lowest so far."""
        self.validated_step = step
        if not math.isfinite(loss):
            self.waited += 1
            return False
        if self.to_beat is None or loss < self.to_beat - min_delta:
            self.to_beat, self.waited = loss, 0
        else:
            self.waited += 1
        if self.loss is not None and loss >= self.loss:
            return False
        self.step, self.loss = step, loss
        return True

    def reason_to_stop(self, options: EarlyStopping | None) -> str | None:
        """Why training should end here, or None while it should not."""
        if options is None or self.waited < options.patience:
            return None
        lowest = "" if self.loss is None else f" than {self.loss:.4f} at step {self.step}"
        return f"{self.waited} validations in a row brought no better loss{lowest}"


def best_step(progress: Mapping[str, JsonValue]) -> int | None:
    """Step of the lowest validation loss, as a checkpoint's progress has it."""
    return Best.of(progress).step
