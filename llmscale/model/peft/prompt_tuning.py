"""Prompt tuning (arXiv:2104.08691): learned embeddings of tokens that stand before each text.

The data puts placeholders there, -1, -2, …, so that positions, packing and attention know of them; here their
embeddings take the place of what the embedding gives for them.

Shapes: B rows, S tokens of a row, P virtual tokens, H hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmscale.config.tuning import PeftSection
from llmscale.model.initialize import normal_box
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.declared import whole_declaration
from llmscale.parallel.partial import sum_gradient

NAME = "prompt_embeddings"
"""Of the tensor in the peft library's files."""


class VirtualTokens(torch.nn.Module):
    """Embeddings of the placeholders."""

    def __init__(self, tokens: int, hidden_size: int, like: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(like.new_zeros(tokens, hidden_size))

    def forward(self) -> Tensor:
        """[P, H]."""
        return self.weight


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """Virtual tokens for the chunk that has the embedding, drawn as the peft library draws them: normal, of
    deviation 1."""
    for chunk in (chunk for chunk in chunks if chunk.pre_process):
        like = chunk.embedding.word_embeddings.weight
        virtual = VirtualTokens(options.virtual_tokens, chunk.config.hidden_size, like)
        put_before_texts(chunk, virtual)
        local_name = "embedding.word_embeddings.virtual.weight"
        declaration = whole_declaration(local_name, NAME, tuple(virtual.weight.shape))
        chunk.added[local_name] = declaration
        virtual.weight.data.copy_(normal_box(seed, declaration.regions[0], 1.0))


def put_before_texts(chunk: LanguageModel, virtual: torch.nn.Module) -> None:
    """Have `virtual()` embed the placeholders."""
    words = chunk.embedding.word_embeddings
    words.virtual = virtual

    def without_placeholders(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        words.placeholders_BS = inputs[0]
        return (inputs[0].clamp(min=0), *inputs[1:])

    def with_virtual(_: torch.nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        tokens_BS, words.placeholders_BS = words.placeholders_BS, None
        embeddings_PH = virtual()
        if words.reduce_scatter_embeddings:
            # Each tensor rank has its part of the sequence, [S / ranks, B, H].
            tokens_BS = tokens_BS.T.chunk(chunk.world.tensor_group.size())[chunk.world.coordinates.tensor]
            embeddings_PH = sum_gradient(embeddings_PH, chunk.world.tensor_group)
        is_virtual = tokens_BS < 0
        chosen = embeddings_PH[torch.where(is_virtual, -1 - tokens_BS, 0)]
        return torch.where(is_virtual[..., None], chosen, embedded)

    words.placeholders_BS = None
    words.register_forward_pre_hook(without_placeholders)
    words.register_forward_hook(with_virtual)
