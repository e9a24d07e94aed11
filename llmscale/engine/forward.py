"""A model's forward pass without an engine, under any tensor and pipeline layout: stages pass hidden states
on by plain sends, one batch travelling through all of them.

Shapes: S sequence, B rows, H hidden size.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed
from torch import Tensor

from llmscale.model.language_model import LanguageModel
from llmscale.parallel.layout import Coordinates
from llmscale.parallel.world import World

Forward = Callable[[LanguageModel, Tensor, Tensor], Tensor]
"""(chunk, tokens, their positions) → what the chunk's layers make of its input."""


def through_stages(
    chunks: Sequence[LanguageModel],
    world: World,
    tokens_BS: Tensor,
    position_ids_BS: Tensor,
    forward: Forward = LanguageModel.hidden_states,
) -> Tensor:
    """Through all chunks of all stages in the model's order; hidden states [S, B, H] on the last stage, and
    nothing of use elsewhere. Collective over a model replica, whose world must be active."""
    group = world.pipeline_group
    stage, stages = group.rank(), group.size()
    batch, sequence = tokens_BS.shape
    hidden = tokens_BS
    for chunk in chunks:
        if not chunk.pre_process:
            hidden = torch.empty(
                (sequence, batch, chunk.config.hidden_size),
                dtype=chunk.config.params_dtype,
                device=world.device,
            )
            torch.distributed.recv(hidden, group=group, group_src=(stage - 1) % stages)
            chunk.set_input_tensor(hidden)
        hidden = forward(chunk, tokens_BS, position_ids_BS)
        if not chunk.post_process:
            torch.distributed.send(hidden.contiguous(), group=group, group_dst=(stage + 1) % stages)
    return hidden


def telling_rank(world: World) -> int:
    """Global rank of tensor rank 0 of the last stage of this replica, which knows what comes out."""
    layout, place = world.layout, world.coordinates
    return layout.rank(Coordinates(0, place.context, place.data, layout.pipeline - 1))
