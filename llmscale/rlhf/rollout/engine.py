"""Who writes the answers, behind one small interface.

It asks for nothing that a server of another kind could not give: texts are tokens, weights come by Hugging
Face name, one tensor at a time, in buckets that carry a version.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.engine.sampling import SamplingOptions
from llmscale.engine.texts import Request
from llmscale.rlhf.rollout.buckets import Bucket

__all__ = ["ENGINES", "Request", "RolloutEngine", "Written", "engine_class", "sampling_options"]


@dataclass(frozen=True)
class Written:
    """One answer of the model."""

    tokens: Sequence[int]
    """With the token that ends it, where it has ended."""
    log_probabilities: Sequence[float]
    """Of each, when it was drawn, among all tokens at the temperature of the rollout (greedy: at 1). What
    top-k and top-p leave out is counted in: so a trainer counts, too."""
    finished: bool
    """It ended by itself."""
    version: int = 0
    """Steps of training that the weights had behind them."""


class RolloutEngine(Protocol):
    """All ranks of a replica call its methods together, with the same arguments."""

    @property
    def version(self) -> int | None:
        """Of the weights that it writes with; None before the first have come."""
        ...

    def generate(self, requests: Sequence[Request], options: RolloutSection) -> list[Written]:
        """An answer to each, in their order. Each depends on its own seed, whatever else is asked.

        Raises:
            RuntimeError: it has no weights yet, or sleeps.
        """
        ...

    def load_weights(self, version: int, buckets: Iterable[Bucket]) -> None:
        """Take over all weights; only when all are there and right do they take the place of the old ones.

        Raises:
            SyncFailed: something is missing, or is not what was sent; the old weights stay in use.
        """
        ...

    def sleep(self) -> None:
        """Give the device's memory back to others."""
        ...

    def wake(self) -> None:
        """Be as before `sleep`."""
        ...


ENGINES: Mapping[str, str] = {
    "native": "llmscale.rlhf.rollout.native:NativeRollout",
    "transformers": "llmscale.rlhf.rollout.transformers:TransformersRollout",
}
"""`rlhf.rollout.engine` -> its class. Each is made in its own way: see there."""


def engine_class(name: str) -> Callable[..., RolloutEngine]:
    module, _, found = ENGINES[name].partition(":")
    return getattr(import_module(module), found)


def sampling_options(options: RolloutSection, end_ids: frozenset[int]) -> SamplingOptions:
    """What of it says how a token is drawn."""
    return SamplingOptions(
        options.max_new_tokens, options.temperature, options.top_k, options.top_p, end_ids=end_ids
    )
