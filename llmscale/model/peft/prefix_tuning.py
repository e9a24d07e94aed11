"""Prefix tuning (arXiv:2101.00190): learned keys and values in each layer, which every token sees.

Without the paper's network that makes them, as the peft library does by default. Its one tensor
[P, layers · 2 · kv_heads · head_size] has layer l's keys at 2 l and its values at 2 l + 1; here each layer
holds its own part. A text's own positions begin at P.
"""

from collections.abc import Sequence

import torch

from llmscale.config.tuning import PeftSection
from llmscale.model.attention import SelfAttention
from llmscale.model.initialize import normal_box
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.declared import added_declaration
from llmscale.model.regions import Box, Region

NAME = "prompt_embeddings"
"""Of the tensor in the peft library's files."""


class Prefix(torch.nn.Module):
    """One layer's keys and values, [P, this rank's heads × D] each."""

    def __init__(self, attention: SelfAttention, tokens: int, like: torch.Tensor) -> None:
        super().__init__()
        self.heads, self.head_size = attention.kv_heads, attention.head_size
        shape = (tokens, self.heads * self.head_size)
        self.keys = torch.nn.Parameter(like.new_zeros(shape))
        self.values = torch.nn.Parameter(like.new_zeros(shape))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, [P, K, D] each."""
        shape = (-1, self.heads, self.head_size)
        return self.keys.view(shape), self.values.view(shape)


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """A prefix for every layer, drawn as embeddings are by default: normal, of deviation 1."""
    for chunk in chunks:
        chunk.first_position = options.virtual_tokens
        if chunk.rotary_table is not None:
            chunk.rotary_table.extend(options.virtual_tokens)
        for local_name, module in list(chunk.named_modules()):
            if isinstance(module, SelfAttention):
                like = module.linear_proj.weight
                module.prefix = Prefix(module, options.virtual_tokens, like)
                _declare(chunk, module, f"{local_name}.prefix", seed)


def _declare(chunk: LanguageModel, attention: SelfAttention, local_name: str, seed: int) -> None:
    model = chunk.model_section
    layer_columns = model.kv_heads_or_default * model.head_size_or_default
    own_columns = attention.kv_heads * attention.head_size
    for place, kind in enumerate(("keys", "values")):
        parameter = attention.get_parameter(f"prefix.{kind}")
        tokens = len(parameter)
        first = (2 * (attention.layer_number - 1) + place) * layer_columns
        first += chunk.world.coordinates.tensor * own_columns
        size = (tokens, own_columns)
        region = Region(
            NAME, (tokens, 2 * model.layers * layer_columns), Box((0, 0), size), Box((0, first), size)
        )
        parameter.data.copy_(normal_box(seed, region, 1.0))
        name = f"{local_name}.{kind}"
        chunk.added[name] = added_declaration(name, size, (region,), tensor_replicated=False)
