"""What a model says of microbatches, without learning from them: one forward pass, dropout off."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.engine.schedule import ScheduledChunk, run_schedule
from llmscale.model.language_model import LanguageModel
from llmscale.parallel.rng import preserved
from llmscale.parallel.world import World

Tell = Callable[[LanguageModel, Tensor, Batch], Tensor]
"""(chunk, its output, microbatch) → what is wanted of it."""


@torch.no_grad()
def ask(chunks: Sequence[ScheduledChunk], world: World, batches: Sequence[Batch], tell: Tell) -> list[Tensor]:
    """What `tell` makes of each microbatch, on the ranks of the last stage; nothing on others. Collective.

    Args:
        chunks: this rank's, called through the engine where ZeRO has to gather weights.
        world: active.
        batches: on the world's device.
    """

    def told(chunk: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        found = tell(chunk, output, batch)
        return found.sum(), found

    modes = [chunk.module.training for chunk in chunks]
    for chunk in chunks:
        chunk.module.eval()
    with preserved(world.rng):
        reports = run_schedule(
            list(chunks),
            world,
            list(batches),
            told,
            forward_only=True,
            # Nothing is drawn, but the model asks for its streams all the same.
            before_microbatch=lambda _: world.seed("ask"),
        )
    for chunk, mode in zip(chunks, modes):
        chunk.module.train(mode)
    return reports if world.is_last_stage else []
