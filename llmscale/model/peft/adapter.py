"""Bottleneck adapters (arXiv:1902.00751): h + U gelu(D h + d) + u, after attention and after the feed-forward
layer, before what they give is added to the residual stream.

Shapes: S sequence (a rank's part of it under sequence parallelism), B batch, H hidden size, W bottleneck.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from llmscale.config.tuning import PeftSection
from llmscale.model.attention import SelfAttention
from llmscale.model.initialize import uniform_box
from llmscale.model.language_model import LanguageModel
from llmscale.model.layer import Layer
from llmscale.model.mlp import FeedForward
from llmscale.model.peft.declared import whole_declaration
from llmscale.parallel.partial import sum_gradient


class Adapter(torch.nn.Module):
    """The whole of it on every tensor rank; says nothing at first."""

    def __init__(
        self, bottleneck: int, hidden_size: int, like: Tensor, group: ProcessGroup, is_partial: bool
    ) -> None:
        super().__init__()
        self.group = group
        self.is_partial = is_partial
        """Each tensor rank applies it to its part of the sequence."""
        self.is_on = True
        """Where not, the layer gives what it gave before."""
        self.down_WH = torch.nn.Parameter(like.new_zeros(bottleneck, hidden_size))
        self.down_bias_W = torch.nn.Parameter(like.new_zeros(bottleneck))
        self.up_HW = torch.nn.Parameter(like.new_zeros(hidden_size, bottleneck))
        self.up_bias_H = torch.nn.Parameter(like.new_zeros(hidden_size))

    def forward(self, hidden_SBH: Tensor) -> Tensor:
        down, down_bias, up, up_bias = (
            sum_gradient(parameter, self.group) if self.is_partial else parameter
            for parameter in (self.down_WH, self.down_bias_W, self.up_HW, self.up_bias_H)
        )
        return hidden_SBH + F.linear(F.gelu(F.linear(hidden_SBH, down, down_bias)), up, up_bias)


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """An adapter after each attention and each feed-forward layer."""
    for chunk in chunks:
        for local_name, module in list(chunk.named_modules()):
            if isinstance(module, SelfAttention):
                like, layer_number, kind = module.linear_proj.weight, module.layer_number, "attention"
            elif isinstance(module, FeedForward):
                like, kind = module.linear_fc2.weight, "mlp"
                layer = chunk.get_submodule(local_name.rpartition(".")[0])
                assert isinstance(layer, Layer)
                layer_number = layer.layer_number
            else:
                continue
            group, is_partial = chunk.world.tensor_group, chunk.config.sequence_parallel
            module.adapter = Adapter(options.bottleneck, chunk.config.hidden_size, like, group, is_partial)
            module.register_forward_hook(_adapt)
            name = f"adapters.layers.{layer_number - 1}.{kind}"
            _declare(chunk, module.adapter, f"{local_name}.adapter", name, seed)


def _declare(chunk: LanguageModel, adapter: Adapter, local_name: str, name: str, seed: int) -> None:
    stored = {
        "down_WH": "down.weight",
        "down_bias_W": "down.bias",
        "up_HW": "up.weight",
        "up_bias_H": "up.bias",
    }
    for key, ending in stored.items():
        local = f"{local_name}.{key}"
        parameter = adapter.get_parameter(key)
        chunk.added[local] = whole_declaration(local, f"{name}.{ending}", tuple(parameter.shape))
        if key == "down_WH":
            region = chunk.added[local].regions[0]
            parameter.data.copy_(uniform_box(seed, region, 1 / math.sqrt(parameter.shape[1])))


def _adapt(
    module: torch.nn.Module, _: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Forward hook: the layer's bias, which is otherwise added later, belongs to what the adapter sees."""
    hidden, bias = output
    assert isinstance(module.adapter, Adapter)
    if not module.adapter.is_on:
        return output
    return module.adapter(hidden if bias is None else hidden + bias), None
