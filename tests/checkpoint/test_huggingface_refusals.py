"""What llmscale cannot follow in a Hugging Face folder is refused by name, all of it at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmscale.checkpoint.huggingface_folder import open_folder
from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.model.huggingface import hugging_face_config, model_of
from llmscale.run.beginnings import check_init_from
from tests.checkpoint.exchanged_models import CASES, POSITIONS, VOCABULARY, random_peer, section

Change = dict[str, Any]
CHANGES: list[tuple[str, Change, str]] = [
    ("llama", {"attention_bias": True}, "attention_bias"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
    ("llama", {"model_type": "mamba"}, "model_type"),
    ("llama", {"model_type": ["llama"]}, "model_type"),
    ("llama", {"architectures": ["LlamaForTokenClassification"]}, "architectures"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
    ("llama", {"sliding_window": 8}, "sliding_window"),
    ("llama", {"hidden_size": "64"}, "hidden_size"),
    ("llama", {"hidden_size": None}, "hidden_size"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads"),
    ("llama", {"num_attention_heads": 3, "head_dim": 16}, "kv_heads"),
    ("llama", {"rms_norm_eps": 0}, "norm_epsilon"),
    ("llama", {"rms_norm_eps": float("nan")}, "norm_epsilon"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "rope_parameters.rope_type"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor"),
    ("llama", {"rope_parameters": {"rope_type": "default", "beta": 1}}, "rope_parameters.beta"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_scaling"),
    ("llama", {"rope_theta": 500.0}, "rope_theta"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("qwen3, tied", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen3, tied", {"head_dim": None}, "head_dim"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ("gpt2", {"attn_pdrop": 0.3}, "attn_pdrop"),
]


def tree_of(case: str) -> dict[str, Any]:
    return hugging_face_config(section(case), VOCABULARY, POSITIONS)


@pytest.mark.parametrize(("case", "change", "key"), CHANGES)
def test_configs_are_refused_by_key(case: str, change: Change, key: str) -> None:
    with pytest.raises(InputError) as caught:
        model_of(tree_of(case) | change)
    keys = [
        problem.key.removeprefix("config.json: ").removeprefix("model.") for problem in caught.value.problems
    ]
    assert key in keys


@pytest.mark.parametrize("case", CASES)
def test_configs_come_back(case: str) -> None:
    tree = tree_of(case)
    assert hugging_face_config(model_of(tree), VOCABULARY, POSITIONS) == tree


def test_configs_of_older_versions_are_read() -> None:
    tree = tree_of("llama, tied")
    rope = tree.pop("rope_parameters")
    older = tree | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "float32"}
    assert model_of(older) == model_of(tree_of("llama, tied"))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.lists(st.integers()),
    st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta"]), st.text(max_size=2)),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.data())
def test_any_value_is_read_or_refused(case: str, data: st.DataObject) -> None:
    """Never another exception, and never a model that is not the one described."""
    tree = tree_of(case)
    key = data.draw(st.sampled_from([*sorted(tree), "rope_scaling", "auto_map", "rope_theta"]))
    tree[key] = data.draw(VALUES)
    try:
        model = model_of(tree)
    except InputError as error:
        assert error.problems
        return
    assert model.family == tree["model_type"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_peer("llama, tied").save_pretrained(tmp_path)
    return tmp_path


def resave(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def without_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 5)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / f"{folder.name}.safetensors")
    stolen = {"weight_map": {"model.norm.weight": f"../{folder.name}.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stolen))


def index_without_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")


def code_in_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["code.Tokenizer", null]}}')


FOLDERS: list[tuple[Callable[[Path], None], str]] = [
    (cut, "its header tells of"),
    (huge_header, "its header is not all there"),
    (pickle_only, "pickles"),
    (index_outside, "no name of a safetensors file"),
    (index_without_file, "model-00001-of-00001.safetensors"),
    (code_in_tokenizer, "auto_map"),
    (lambda folder: (folder / "config.json").write_text("[1"), "cannot be read"),
    (lambda folder: resave(folder, without_norm), "model.norm.weight = missing"),
    (lambda folder: resave(folder, lambda t: t.update(more=torch.ones(2))), "more = "),
    (
        lambda folder: resave(folder, lambda t: t.update({"model.norm.weight": torch.ones(63)})),
        "has shape [64]",
    ),
    (
        lambda folder: resave(folder, lambda t: t.update({"model.norm.weight": torch.ones(64).double()})),
        "F64",
    ),
    (
        lambda folder: resave(folder, lambda t: t.update({"lm_head.weight": torch.ones(VOCABULARY, 64)})),
        "differs from model.embed_tokens.weight",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), FOLDERS)
def test_folders_are_refused_by_name(folder: Path, spoil: Callable[[Path], object], words: str) -> None:
    open_folder(folder)
    spoil(folder)
    with pytest.raises(InputError) as caught:
        open_folder(folder)
    assert words in str(caught.value)


def test_a_second_copy_of_a_tied_output_is_left_out(folder: Path) -> None:
    resave(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in open_folder(folder).tensors


def config(folder: Path, **model: Any) -> Config:
    fields = section("llama, tied").model_dump(exclude_unset=True) | model
    kept = {key: value for key, value in fields.items() if value != "left out"}
    train = {"init_from": folder, "sequence_length": POSITIONS}
    return Config.model_validate({"model": kept, "train": train})


def test_beginning_from_a_folder(folder: Path) -> None:
    assert check_init_from(config(folder)) == []
    assert check_init_from(config(folder, vocabulary_size=VOCABULARY + 9, rope_base=1e6)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 128},
        {"kv_heads": 4},
        {"norm_epsilon": 1e-6},
        {"tie_embeddings": False},
        {"rope_base": "left out"},
        {"rope_scaling": "left out"},
        {"vocabulary_size": VOCABULARY - 1},
    ],
)
def test_differences_from_the_folder_are_named(folder: Path, change: Change) -> None:
    keys = [problem.key for problem in check_init_from(config(folder, **change))]
    assert f"model.{next(iter(change))}" in keys
