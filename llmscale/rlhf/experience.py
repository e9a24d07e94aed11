"""An answer and all that is known of it, as it travels between driver and workers.

Shapes: T tokens of prompt and answer together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Experience:
    """One answer to one prompt. What is known of a token stands at its own place; 0 where nothing is."""

    tokens_T: NDArray[np.int32]
    learned_T: NDArray[np.bool_]
    """The policy wrote it: neither the prompt nor what an environment said."""
    prompt: int
    """Place of the prompt among those of its batch: answers with the same one are compared."""
    place: int
    """Which answer to it."""
    version: int
    """Steps of the run that the weights had behind them which wrote it."""
    finished: bool
    """It ended by itself, and was not cut off."""
    signals: Mapping[str, Floats] = field(default_factory=dict)
    """[T] each, by the names of `llmscale.objectives.rl.signals`."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Of the whole answer, by the name of what gave it."""
    reward: float | None = None
    """Their weighted sum; None where none could be given, and nothing is learned of the answer."""
    turn_rewards: Mapping[int, float] = field(default_factory=dict)
    """What the turns of a conversation brought, by the place of the token that ends each: a part of
    `reward`."""

    def knowing(self, **signals: Floats) -> "Experience":
        """The same with more known of its tokens."""
        return replace(self, signals={**self.signals, **signals})

    @property
    def last_answer(self) -> int:
        """Place of the first token of the last answer; behind the end where there is none."""
        others = np.flatnonzero(~self.learned_T)
        return int(others[-1]) + 1 if len(others) else 0

    @property
    def answer_length(self) -> int:
        return int(self.learned_T.sum())
