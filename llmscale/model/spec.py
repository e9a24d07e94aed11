"""The layer specification that Megatron's `GPTModel` is built from."""

import logging

from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from llmscale.config.schema import ModelSection
from llmscale.model.attention import SelfAttention
from llmscale.model.families.family import Family
from llmscale.model.layer import Layer
from llmscale.model.mlp import FeedForward
from llmscale.model.norm import Norm
from llmscale.parallel.world import World

# Megatron warns once a layer that it does not know our feed-forward class.
logging.getLogger("megatron.core.transformer.transformer_layer").setLevel(logging.ERROR)


def block_spec(
    model: ModelSection, family: Family, config: TransformerConfig, world: World, layers_here: int
) -> TransformerBlockSubmodules:
    """The layers of one model chunk, and its final norm."""
    groups = {"tensor_group": world.tensor_group}
    norm = ModuleSpec(Norm, params=groups | {"partial_gradient": config.sequence_parallel})
    # A tensor rank applies the norm of single heads to its own heads only, whatever the sequence does.
    head_norm = (
        ModuleSpec(Norm, params=groups | {"partial_gradient": True}) if family.query_key_norm else None
    )
    layer = ModuleSpec(
        Layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                SelfAttention, params={"query_key_norm": head_norm, "sliding_window": model.sliding_window}
            ),
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(FeedForward, params=groups),
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * layers_here, layer_norm=norm)
