"""Qwen3 (arXiv:2505.09388): Llama with an RMSNorm on each head's query and key."""

from llmscale.model.families.family import Family
from llmscale.model.families.llama import NAMES

QWEN3 = Family(
    name="qwen3",
    query_key_norm=True,
    names=NAMES
    | {
        "self_attention.q_layernorm.weight": ("model.layers.{layer}.self_attn.q_norm.weight",),
        "self_attention.k_layernorm.weight": ("model.layers.{layer}.self_attn.k_norm.weight",),
    },
)
