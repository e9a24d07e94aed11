"""Megatron's pipeline schedules over a DeepSpeed engine."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.documents import Documents
from llmscale.model.language_model import LanguageModel
from llmscale.parallel.world import World


class ScheduledChunk(torch.nn.Module):
    """A model chunk as Megatron's schedules want to see one, called through `call` (DeepSpeed's engine,
    which then sees forward and backward, or the chunk itself)."""

    def __init__(self, chunk: LanguageModel, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = chunk
        self.config = chunk.config
        self.vp_stage = chunk.vp_stage
        self.model_type = chunk.model_type
        self.call = (call,)  # in a tuple, so that it is not registered as a second submodule

    def set_input_tensor(self, tensor: Any) -> None:
        self.module.set_input_tensor(tensor)

    def forward(self, *inputs: Any) -> Tensor:
        return self.call[0](*inputs)


LossFunction = Callable[[LanguageModel, Tensor, Batch], tuple[Tensor, Tensor]]
"""(chunk, its output, microbatch) → (what to differentiate, what to report)."""


def run_schedule(
    chunks: list[ScheduledChunk],
    world: World,
    microbatches: list[Batch],
    loss_function: LossFunction,
    forward_only: bool,
    before_microbatch: Callable[[int], None],
) -> list[Tensor]:
    """Forward (and backward) of all microbatches; returns what `loss_function` reported for each, on the
    last stage, and an empty list elsewhere.

    Args:
        before_microbatch: called with its number before a chunk's forward.
    """

    def forward_step(batches: Iterator[tuple[int, Batch]], chunk: ScheduledChunk) -> tuple[Tensor, Any]:
        number, batch = next(batches)
        before_microbatch(number)
        lengths = batch.document_lengths
        documents = None if lengths is None else Documents(lengths, batch.document_before)
        output = chunk(batch.tokens_BS, batch.position_ids_BS, documents, batch.counted_C)

        def loss(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            differentiate, report = loss_function(chunk.module, output, batch)
            return differentiate, torch.zeros((), dtype=torch.int), report

        return output, loss

    batch_size, sequence_length = microbatches[0].tokens_BS.shape
    layout = world.layout
    iterators = [iter(list(enumerate(microbatches))) for _ in chunks]
    interleaved = len(chunks) > 1
    return get_forward_backward_func(layout.pipeline, layout.interleave if interleaved else None)(
        forward_step_func=forward_step,
        data_iterator=iterators if interleaved else iterators[0],
        model=chunks if interleaved else chunks[0],  # pyright: ignore[reportArgumentType]
        num_microbatches=len(microbatches),
        seq_length=sequence_length,
        micro_batch_size=batch_size,
        forward_only=forward_only,
    )
