"""Llama and its kin: RMSNorm, rotary positions, SwiGLU, no biases (arXiv:2302.13971, arXiv:2407.21783)."""

from llmscale.model.families.family import Family

_LAYER = "model.layers.{layer}."

NAMES = {
    "embedding.word_embeddings.weight": ("model.embed_tokens.weight",),
    "output_layer.weight": ("lm_head.weight",),
    "decoder.final_layernorm.weight": ("model.norm.weight",),
    "input_layernorm.weight": (_LAYER + "input_layernorm.weight",),
    "self_attention.linear_qkv.weight": (
        _LAYER + "self_attn.q_proj.weight",
        _LAYER + "self_attn.k_proj.weight",
        _LAYER + "self_attn.v_proj.weight",
    ),
    "self_attention.linear_proj.weight": (_LAYER + "self_attn.o_proj.weight",),
    "pre_mlp_layernorm.weight": (_LAYER + "post_attention_layernorm.weight",),
    "mlp.linear_fc1.weight": (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": (_LAYER + "mlp.down_proj.weight",),
}

LLAMA = Family(name="llama", names=NAMES)
MISTRAL = Family(name="mistral", names=NAMES)
"""Mistral 7B (arXiv:2310.06825): Llama with a sliding window."""
