"""One token a row through the layers of a chunk, with the keys and values of those before it in caches.

The same weights and the same formulas as in `forward`, without what only training needs: at a few rows the
calls around a layer's arithmetic cost as much as that. What has been hooked into a layer (LoRA, adapters) is
asked as ever.

Shapes: B rows, H hidden size, N query heads, K key-value heads, D head size.
"""

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from llmscale_kernels.matmul import packed_product
from llmscale_kernels.rotary import rotate
from llmscale_kernels.swiglu import swiglu
from torch import Tensor
from torch.distributed import ProcessGroup

from llmscale.model.attention import SelfAttention
from llmscale.model.cache import NextTokens
from llmscale.model.language_model import LanguageModel
from llmscale.model.layer import Layer
from llmscale.model.linear import ColumnParallelLinear, RowParallelLinear
from llmscale.model.mlp import FeedForward
from llmscale.model.norm import Norm


@torch.no_grad()
def step(chunk: LanguageModel, tokens_B1: Tensor, position_ids_B1: Tensor) -> Tensor:
    """As `LanguageModel.hidden_states`, [1, B, H]; caches know where the tokens belong."""
    positions_B1 = position_ids_B1 + chunk.first_position
    if chunk.pre_process:
        hidden: Tensor = chunk.embedding(input_ids=tokens_B1, position_ids=positions_B1)
    else:
        assert chunk.decoder.input_tensor is not None
        hidden = chunk.decoder.input_tensor
    table = chunk.rotary_table
    angles = None if table is None else table.at(positions_B1, chunk.config.params_dtype)
    to_add = None
    for layer in chunk.decoder.layers:
        assert isinstance(layer, Layer)
        hidden, to_add = _layer(layer, hidden, to_add, angles)
    final: Any = chunk.decoder.final_layernorm
    if final is None:
        return hidden if to_add is None else hidden + to_add
    return _normalised(final, hidden, to_add)[0]


def _layer(
    layer: Layer, hidden_1BH: Tensor, to_add_1BH: Tensor | None, angles: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the layer's output is the sum of: the next norm adds it up.

    Args:
        hidden_1BH, to_add_1BH: what its input is the sum of.
        angles: of the rows' positions, [2, 1, B or 1, D].
    """
    attention, feed_forward = layer.self_attention, layer.mlp
    assert isinstance(attention, SelfAttention) and isinstance(feed_forward, FeedForward)
    normal, hidden_1BH = _normalised(layer.input_layernorm, hidden_1BH, to_add_1BH)
    if attention._forward_hooks:
        attended = _with_bias(*attention(normal, None, angles))
    else:
        attended = _with_bias(*_attended(attention, normal, angles))
    normal, hidden_1BH = _normalised(layer.pre_mlp_layernorm, hidden_1BH, attended)
    if feed_forward._forward_hooks:
        return hidden_1BH, _with_bias(*feed_forward(normal))
    return hidden_1BH, _with_bias(*_fed(feed_forward, normal))


def _normalised(norm: Norm, hidden: Tensor, to_add: Tensor | None) -> tuple[Tensor, Tensor]:
    """The norm of the sum, and the sum."""
    return (norm(hidden), hidden) if to_add is None else norm(to_add, hidden)


def _attended(
    attention: SelfAttention, hidden_1BH: Tensor, angles: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    cache = attention.cache
    assert cache is not None and isinstance(cache.coming, NextTokens)
    heads, turned = attention.heads, attention.heads + attention.kv_heads
    mixed_1BXD = _column(attention.linear_qkv, hidden_1BH).unflatten(-1, (-1, attention.head_size))
    both_1BXD, value_1BKD = mixed_1BXD[:, :, :turned], mixed_1BXD[:, :, turned:]
    if attention.q_layernorm is not None and attention.k_layernorm is not None:
        query_1BND, key_1BKD = both_1BXD[:, :, :heads], both_1BXD[:, :, heads:]
        both_1BXD = torch.cat((attention.q_layernorm(query_1BND), attention.k_layernorm(key_1BKD)), dim=2)
    if angles is not None:
        both_1BXD = rotate(both_1BXD, angles[0], angles[1])
    attended = cache.attend(both_1BXD[:, :, :heads], both_1BXD[:, :, heads:], value_1BKD, cache.coming)
    return _row(attention.linear_proj, attended)


def _fed(feed_forward: FeedForward, hidden_1BH: Tensor) -> tuple[Tensor, Tensor | None]:
    inner = _column(feed_forward.linear_fc1, hidden_1BH)
    is_gated = feed_forward.config.gated_linear_unit
    inner = swiglu(inner) if is_gated else F.gelu(inner, approximate="tanh")
    return _row(feed_forward.linear_fc2, inner)


def _column(linear: ColumnParallelLinear, input_1BI: Tensor) -> Tensor:
    if linear._forward_hooks:
        output, _ = linear(input_1BI)
        return output
    output = _product(linear, input_1BI)
    return output if linear.bias is None else output + linear.bias


def _row(linear: RowParallelLinear, input_1BI: Tensor) -> tuple[Tensor, Tensor | None]:
    """Output, and the bias to add to it."""
    if linear._forward_hooks:
        return linear(input_1BI)
    output = _product(linear, input_1BI)
    if isinstance(linear.tp_group, ProcessGroup) and linear.tp_group.size() > 1:
        torch.distributed.all_reduce(output, group=linear.tp_group)
    return output, linear.bias


def _product(linear: ColumnParallelLinear | RowParallelLinear, input_1BI: Tensor) -> Tensor:
    if linear.packed is not None:
        return packed_product(input_1BI, linear.packed)
    assert linear.weight is not None
    return F.linear(input_1BI, linear.weight)


def _with_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias
