"""GPT-2: LayerNorm, learned positions, GELU (tanh form), biases everywhere, tied embeddings.

Its Hugging Face weights are stored input-first (`Conv1D`), and query, key and value are one tensor.
"""

from llmscale.model.families.family import Family

_LAYER = "transformer.h.{layer}."


def _weight_and_bias(local: str, name: str) -> dict[str, tuple[str, ...]]:
    return {f"{local}.{kind}": (f"{name}.{kind}",) for kind in ("weight", "bias")}


GPT2 = Family(
    name="gpt2",
    layer_norm=True,
    gated=False,
    biases=True,
    rotary=False,
    transposed=("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight"),
    names={
        "embedding.word_embeddings.weight": ("transformer.wte.weight",),
        "embedding.position_embeddings.weight": ("transformer.wpe.weight",),
        "output_layer.weight": ("lm_head.weight",),
    }
    | _weight_and_bias("decoder.final_layernorm", "transformer.ln_f")
    | _weight_and_bias("input_layernorm", _LAYER + "ln_1")
    | _weight_and_bias("self_attention.linear_qkv", _LAYER + "attn.c_attn")
    | _weight_and_bias("self_attention.linear_proj", _LAYER + "attn.c_proj")
    | _weight_and_bias("pre_mlp_layernorm", _LAYER + "ln_2")
    | _weight_and_bias("mlp.linear_fc1", _LAYER + "mlp.c_fc")
    | _weight_and_bias("mlp.linear_fc2", _LAYER + "mlp.c_proj"),
)
