"""The one mapping between our model section and the `config.json` of a Hugging Face model. No torch.

What a `config.json` says must be something that llmscale computes too: each key of it is taken over, or
must have the one value that llmscale has built in, or is known to say nothing about what is computed.
All else is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from llmscale.config.checks import check_config
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, ModelSection

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""Our family, which is transformers' `model_type` too, and its class there."""

CLASSIFIERS = {
    name: architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "ForSequenceClassification"
    for name, architecture in ARCHITECTURES.items()
}
"""With a head that scores texts in place of the output layer."""

DEFAULT_ROPE_BASE = 10000.0

SAYS_NOTHING = frozenset(
    (
        *("architectures", "model_type", "_name_or_path", "transformers_version", "dtype", "torch_dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "use_cache", "return_dict"),
        *("output_attentions", "output_hidden_states", "chunk_size_feed_forward", "pretraining_tp"),
        *("id2label", "label2id", "problem_type", "task_specific_params"),
    )
)
"""Keys that do not change the logits of a causal language model."""
GPT2_SAYS_NOTHING = SAYS_NOTHING | {
    *("n_ctx", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
    *("summary_type", "summary_use_proj"),
}


def hugging_face_config(
    model: ModelSection, vocabulary_size: int, positions: int, dtype: str = "float32"
) -> dict[str, Any]:
    """The `config.json` of the same model; `transformers.AutoConfig.for_model(**it)` understands it.

    Args:
        model: what the model is.
        vocabulary_size: true rows of the embedding.
        positions: longest sequence.
        dtype: of the weights beside it, by torch's name.

    Raises:
        InputError: transformers has no such model.
    """
    common = {
        "architectures": [ARCHITECTURES[model.family]],
        "dtype": dtype,
        "initializer_range": model.initializer_range,
        "model_type": model.family,
        "tie_word_embeddings": model.tie_embeddings_or_default,
        "use_cache": True,
        "vocab_size": vocabulary_size,
    }
    return common | (_gpt2(model, positions) if model.family == "gpt2" else _rotary(model, positions))


def _gpt2(model: ModelSection, positions: int) -> dict[str, Any]:
    return {
        "activation_function": "gelu_new",
        "attn_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "layer_norm_epsilon": model.norm_epsilon,
        "n_embd": model.hidden_size,
        "n_head": model.heads,
        "n_inner": model.ffn_size_or_default,
        "n_layer": model.layers,
        "n_positions": positions,
        "resid_pdrop": model.dropout,
    }


def _rotary(model: ModelSection, positions: int) -> dict[str, Any]:
    if model.family == "llama" and model.hidden_size % model.heads:
        message = f"does not divide model.hidden_size = {model.hidden_size}, which transformers' llama needs"
        raise InputError([Problem("model.heads", model.heads, message)])
    tree = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": model.head_size_or_default,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size_or_default,
        "max_position_embeddings": positions,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads_or_default,
        "rms_norm_eps": model.norm_epsilon,
        "rope_parameters": _rope(model),
    }
    if model.family == "llama":
        tree["mlp_bias"] = False
    if model.family == "mistral":
        tree["sliding_window"] = model.sliding_window
        del tree["attention_bias"]
    if model.family == "qwen3":
        tree["use_sliding_window"] = False
    return tree


def _rope(model: ModelSection) -> dict[str, Any]:
    scaling = model.rope_scaling
    if scaling is None:
        return {"rope_theta": model.rope_base, "rope_type": "default"}
    rope = {"factor": scaling.factor, "rope_theta": model.rope_base, "rope_type": scaling.type}
    if scaling.type == "llama3":
        rope |= {
            "high_freq_factor": scaling.high_freq_factor,
            "low_freq_factor": scaling.low_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return rope


def model_of(config: Mapping[str, Any]) -> ModelSection:
    """The model that a `config.json` describes, every field filled in.

    Raises:
        InputError: naming each key that llmscale cannot follow.
    """
    tree = {key: value for key, value in config.items() if value is not None}
    reading = _Reading(tree)
    if "auto_map" in tree:
        message = "names code to be run, which llmscale never does; take a folder without it"
        reading.refuse("auto_map", tree.pop("auto_map"), message)
    family = tree.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        reading.refuse("model_type", family, f"is none of {', '.join(ARCHITECTURES)}, which llmscale knows")
        raise InputError(reading.problems)
    reading.only("architectures", [ARCHITECTURES[family]], [CLASSIFIERS[family]])
    fields = {"family": family, "vocabulary_size": reading.size("vocab_size")}
    fields["initializer_range"] = reading.number("initializer_range", 0.02)
    fields["tie_embeddings"] = reading.flag("tie_word_embeddings", family == "gpt2")
    fields |= _read_gpt2(reading) if family == "gpt2" else _read_rotary(reading, family)
    reading.finish(GPT2_SAYS_NOTHING if family == "gpt2" else SAYS_NOTHING)
    if reading.problems:
        raise InputError(reading.problems)
    return _checked(fields)


def has_head(config: Mapping[str, Any]) -> bool:
    """A `config.json` tells of a model that scores texts, and does not write."""
    return config.get("architectures") == [CLASSIFIERS.get(config.get("model_type", ""))]


def _read_gpt2(reading: "_Reading") -> dict[str, Any]:
    reading.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    reading.only("scale_attn_weights", True)
    for key in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        reading.only(key, False)
    dropout = reading.number("resid_pdrop", 0.1)
    for key in ("attn_pdrop", "embd_pdrop"):
        if reading.number(key, 0.1) != dropout:
            message = f"differs from resid_pdrop = {dropout}, and llmscale has one dropout for all three"
            reading.refuse(key, reading.tree.get(key), message)
    hidden = reading.size("n_embd")
    return {
        "hidden_size": hidden,
        "layers": reading.size("n_layer"),
        "heads": reading.size("n_head"),
        "ffn_size": reading.size("n_inner", 4 * hidden),
        "max_positions": reading.size("n_positions"),
        "norm_epsilon": reading.number("layer_norm_epsilon", 1e-5),
        "dropout": dropout,
    }


def _read_rotary(reading: "_Reading", family: str) -> dict[str, Any]:
    reading.only("hidden_act", "silu")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        reading.only(key, False)
    reading.only("attention_dropout", 0)
    reading.only("partial_rotary_factor", 1)
    layers, heads = reading.size("num_hidden_layers"), reading.size("num_attention_heads")
    hidden = reading.size("hidden_size")
    window = reading.size("sliding_window", 0) if family == "mistral" else 0
    if family == "qwen3":
        reading.seen |= {"sliding_window", "max_window_layers"}  # without use_sliding_window they say nothing
    reading.only("layer_types", ["sliding_attention" if window else "full_attention"] * layers)
    fields = {
        "hidden_size": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": reading.size("num_key_value_heads", heads),
        "head_size": reading.size("head_dim", None if family == "qwen3" else hidden // max(heads, 1)),
        "ffn_size": reading.size("intermediate_size"),
        "max_positions": reading.size("max_position_embeddings"),
        "norm_epsilon": reading.number("rms_norm_eps", 1e-6),
        "sliding_window": window or None,
    }
    return fields | _read_rope(reading)


ROPE_TYPES = ("default", "linear", "llama3")


def _read_rope(reading: "_Reading") -> dict[str, Any]:
    """`rope_parameters`, or `rope_theta` and `rope_scaling` as older versions of transformers wrote them."""
    old, new = reading.section("rope_scaling"), reading.section("rope_parameters")
    if old and new and old != new:
        reading.refuse("rope_scaling", old, f"and rope_parameters = {new} are both there, and differ")
    rope = _Reading(new or old, "rope_parameters." if new else "rope_scaling.")
    outer = reading.number("rope_theta", DEFAULT_ROPE_BASE)
    base = rope.number("rope_theta", outer)
    if "rope_theta" in reading.tree and base != outer:
        reading.refuse("rope_theta", outer, f"and {base} in {rope.prefix.rstrip('.')} differ")
    rope.only("partial_rotary_factor", 1)
    rope.seen |= {"rope_type", "type"}
    kind = rope.tree.get("rope_type", rope.tree.get("type", "default"))
    scaling = None
    if kind not in ROPE_TYPES:
        rope.refuse("rope_type", kind, f"is none of {', '.join(ROPE_TYPES)}, which llmscale computes")
    else:
        scaling = _read_scaling(rope, kind)
        rope.finish(frozenset())
    reading.problems += rope.problems
    return {"rope_base": base, "rope_scaling": scaling}


def _read_scaling(rope: "_Reading", kind: str) -> dict[str, Any] | None:
    if kind == "linear":
        return {"type": "linear", "factor": rope.number("factor")}
    if kind == "llama3":
        factors = {key: rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor")}
        positions = rope.size("original_max_position_embeddings")
        return {"type": "llama3", "original_max_positions": positions, **factors}
    return None


class _Reading:
    """A JSON object that is being read: which keys have been looked at, and what is wrong with them."""

    def __init__(self, tree: dict[str, Any], prefix: str = "") -> None:
        self.tree, self.prefix = tree, prefix
        self.seen: set[str] = set()
        self.problems: list[Problem] = []

    def refuse(self, key: str, value: object, message: str) -> None:
        self.problems.append(Problem(f"config.json: {self.prefix}{key}", value, message))

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; without a default there must be one."""
        value = self._take(key, default)
        if type(value) is not int or value < 0 or (value == 0 and key in self.tree):
            return self._wrong(key, value, "must be a whole number above 0", 1)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._take(key, default)
        if type(value) not in (int, float) or value < 0:
            return self._wrong(key, value, "must be a number of at least 0", 1.0)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        return value if type(value) is bool else self._wrong(key, value, "must be true or false", default)

    def section(self, key: str) -> dict[str, Any]:
        value = self._take(key, {})
        return value if isinstance(value, dict) else self._wrong(key, value, "must be an object", {})

    def only(self, key: str, *allowed: object) -> None:
        """The key, if it is there, must have one of these values."""
        value = self._take(key, allowed[0])
        if value not in allowed:
            self.refuse(key, value, f"llmscale computes {' or '.join(map(str, allowed))} here, nothing else")

    def finish(self, says_nothing: frozenset[str]) -> None:
        """Refuse what nobody has asked for."""
        for key in sorted(self.tree.keys() - self.seen - says_nothing):
            message = "is not known to llmscale, and could change what the model computes"
            self.refuse(key, self.tree[key], message)

    def _take(self, key: str, default: Any) -> Any:
        self.seen.add(key)
        return self.tree.get(key, default)

    def _wrong(self, key: str, value: object, message: str, instead: Any) -> Any:
        if not any(problem.key == f"config.json: {self.prefix}{key}" for problem in self.problems):
            self.refuse(key, value, "is missing" if key not in self.tree else message)
        return instead


def _checked(fields: dict[str, Any]) -> ModelSection:
    """The section, if it is one that llmscale can build."""
    try:
        model = ModelSection.model_validate(fields)
    except ValidationError as error:
        found = [(".".join(map(str, one["loc"])), one["input"], one["msg"]) for one in error.errors()]
        problems = [Problem(f"config.json: model.{key}", value, text) for key, value, text in found]
        raise InputError(problems) from None
    problems = [
        Problem(f"config.json: {problem.key}", problem.value, problem.message)
        for problem in check_config(Config(model=model))
        if problem.key.startswith("model.")
    ]
    if problems:
        raise InputError(problems)
    return model
