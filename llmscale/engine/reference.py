"""The reference of preference training: what the model that a run started from gives to the answers.

Shapes: B rows, L documents of the fullest row.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.engine.ask import ask
from llmscale.engine.resting import Resting
from llmscale.engine.schedule import ScheduledChunk
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.off import peft_off
from llmscale.objectives.document_log_probabilities import document_log_probabilities
from llmscale.parallel.world import World


class Reference(Protocol):
    """Asked by the engine before each step and each evaluation of an objective that has a reference."""

    def told(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches, which are on the device, with `reference_BL` on the ranks that compute the loss.
        Collective; the world must be active."""
        ...


class HeldReference:
    """A second model, which has the weights of the start for as long as the run lasts.

    Args:
        chunks: this rank's, with their weights.
        world: active whenever it is asked.
        rests: on a GPU its weights are there only while it is asked, and else in memory of the host.
    """

    def __init__(self, chunks: Sequence[LanguageModel], world: World, rests: bool = True) -> None:
        self.world = world
        self.scheduled = [ScheduledChunk(chunk, chunk) for chunk in chunks]
        for chunk in chunks:
            chunk.requires_grad_(False)
        self._resting = Resting(chunks, world.device) if rests else None

    def told(self, batches: Sequence[Batch]) -> list[Batch]:
        with self.at_work():
            return with_log_probabilities(self.scheduled, self.world, batches)

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._resting is None else self._resting.at_work()


class AdapterOff:
    """The trained model itself without what PEFT has added to it.

    Args:
        scheduled: its chunks, called through the engine where ZeRO has to gather weights.
        world: active whenever it is asked.
    """

    def __init__(self, scheduled: Sequence[ScheduledChunk], world: World) -> None:
        self.scheduled = scheduled
        self.world = world

    def told(self, batches: Sequence[Batch]) -> list[Batch]:
        with peft_off([chunk.module for chunk in self.scheduled]):
            return with_log_probabilities(self.scheduled, self.world, batches)


def with_log_probabilities(
    chunks: Sequence[ScheduledChunk], world: World, batches: Sequence[Batch]
) -> list[Batch]:
    """The batches with what these chunks give to their documents as `reference_BL`; as they are on ranks of
    other stages than the last. Collective."""

    def tell(chunk: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return document_log_probabilities(chunk, output, batch).log_probabilities_BL

    told = ask(chunks, world, batches, tell)
    if not world.is_last_stage:
        return list(batches)
    return [replace(batch, reference_BL=found_BL) for batch, found_BL in zip(batches, told, strict=True)]
