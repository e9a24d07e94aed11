"""Prompt tuning (arXiv:2104.08691): learned embeddings of tokens that stand before each text.

The data puts placeholders there, -1, -2, …, so that positions, packing and attention know of them; here their
embeddings take the place of what the embedding gives for them.

Shapes: B rows, S tokens of a row, P virtual tokens, H hidden size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from llmscale.config.tuning import PeftSection
from llmscale.model.initialize import normal_box
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.declared import whole_declaration
from llmscale.parallel.partial import sum_gradient

NAME = "prompt_embeddings"
"""Of the tensor in the peft library's files."""
LOCAL_NAME = "embedding.word_embeddings.virtual"


class VirtualTokens(torch.nn.Module):
    """Embeddings of the placeholders.

    Args:
        group: of ranks each of which embeds a part of the sequence; None where each embeds all of it.
    """

    def __init__(self, tokens: int, like: Tensor, group: ProcessGroup | None) -> None:
        super().__init__()
        self.group = group
        self.weight = torch.nn.Parameter(like.new_zeros(tokens, like.shape[1]))

    def forward(self, numbers: Tensor) -> Tensor:
        """Embeddings [..., H] of virtual tokens by their numbers [...], from 0."""
        return F.embedding(numbers, whole_gradient(self.weight, self.group))


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """Virtual tokens for the chunk that has the embedding, drawn as the peft library draws them: normal, of
    deviation 1."""
    for chunk in (chunk for chunk in chunks if chunk.pre_process):
        like = chunk.embedding.word_embeddings.weight
        virtual = VirtualTokens(options.virtual_tokens, like, sequence_group(chunk))
        put_before_texts(chunk, virtual)
        local_name = f"{LOCAL_NAME}.weight"
        declaration = whole_declaration(local_name, NAME, tuple(virtual.weight.shape))
        chunk.added[local_name] = declaration
        virtual.weight.data.copy_(normal_box(seed, declaration.regions[0], 1.0))


def sequence_group(chunk: LanguageModel) -> ProcessGroup | None:
    """The tensor ranks, where each embeds its part of the sequence."""
    return chunk.world.tensor_group if chunk.embedding.word_embeddings.reduce_scatter_embeddings else None


def whole_gradient(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    return tensor if group is None else sum_gradient(tensor, group)


def put_before_texts(chunk: LanguageModel, virtual: torch.nn.Module) -> None:
    """Have `virtual(numbers)` embed the placeholders."""
    words = chunk.embedding.word_embeddings
    words.virtual = virtual
    read: list[Tensor] = []

    def without_placeholders(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(inputs[0])
        return (inputs[0].clamp(min=0), *inputs[1:])

    def with_virtual(_: torch.nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        tokens = read.pop()
        if words.reduce_scatter_embeddings:
            # Each tensor rank has its part of the sequence, [S / ranks, B, H].
            tokens = tokens.T.chunk(chunk.world.tensor_group.size())[chunk.world.coordinates.tensor]
        is_virtual = tokens < 0
        return torch.where(is_virtual[..., None], virtual((-1 - tokens).clamp(min=0)), embedded)

    words.register_forward_pre_hook(without_placeholders)
    words.register_forward_hook(with_virtual)
