"""Reward models with random weights, as transformers has them, and as a run of ours would have left them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from llmscale.checkpoint.huggingface_folder import open_folder
from llmscale.checkpoint.import_weights import import_weights
from llmscale.checkpoint.store import Store
from llmscale.checkpoint.tensor_files import TensorFiles
from llmscale.config.load import load_config, write_resolved
from llmscale.config.schema import Config
from llmscale.data.tokenizer import tokenizer_hash, vocabulary_size
from llmscale.model.huggingface import hugging_face_config
from llmscale.model.tensors import hugging_face_shapes
from llmscale.run.export_head import described_head
from llmscale.run.huggingface import copy_tokenizer
from tests.peers import peer

POSITIONS = 96
SIZES = {"hidden_size": 32, "layers": 2, "heads": 4, "ffn_size": 64, "initializer_range": 0.2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "kv_heads": 2},
    "mistral": {"family": "mistral", "kv_heads": 2, "sliding_window": 7},
    "qwen3": {"family": "qwen3", "kv_heads": 2, "head_size": 24, "tie_embeddings": True},
    "gpt2": {"family": "gpt2"},
}


def reward_config(root: Path, name: str, tokenizer: Path, **sections: Any) -> Config:
    """Of a run whose model is of the family that its name begins with."""
    model = SIZES | FAMILIES[name.partition("-")[0]] | {"max_positions": POSITIONS}
    tree = {
        "task": "reward",
        "run": {"root": root, "name": name},
        "model": model,
        "tokenizer": {"path": tokenizer},
        "train": {"sequence_length": POSITIONS, "precision": "fp32"},
        "preferences": {"chat_template": "chatml"},
    }
    return Config.model_validate(tree | sections)


def random_folder(config: Config, folder: Path) -> Path:
    """The model in transformers, saved; norms and biases are random, too."""
    assert config.tokenizer.path is not None
    rows = vocabulary_size(config.tokenizer.path)
    tree = hugging_face_config(config.model, rows, POSITIONS)
    torch.manual_seed(7)
    described = transformers.AutoConfig.for_model(**tree, num_labels=1, pad_token_id=3)
    model = transformers.AutoModelForSequenceClassification.from_config(described)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    copy_tokenizer(config.tokenizer.path, folder)
    return folder


def random_writer(config: Path, folder: Path) -> None:
    """A model that writes, as transformers saves it, of the model and the tokenizer in a config file."""
    found = load_config(config, ["train.init_from=null"])
    assert found.tokenizer.path is not None and found.model.max_positions is not None
    rows = vocabulary_size(found.tokenizer.path)
    torch.manual_seed(5)
    peer(found.model, rows, found.model.max_positions).save_pretrained(folder)
    copy_tokenizer(found.tokenizer.path, folder)


def write_run(config: Config, folder: Path) -> Path:
    """The run folder that a training of `config` would have left, had it come to the weights in `folder`."""
    found, tokenizer = open_folder(folder), config.tokenizer.path
    assert tokenizer is not None and found.model.vocabulary_size is not None
    config.run_folder.mkdir(parents=True)
    write_resolved(config, config.run_folder / "config.yaml")
    description = {
        "layout": "random weights",
        "model": config.model.model_dump(mode="json"),
        "precision": config.train.precision,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        **described_head(config),
    }
    shapes = hugging_face_shapes(config.model, found.model.vocabulary_size, POSITIONS, 1)
    with TensorFiles.of_folder(found) as source:
        store = Store(config.run_folder / "checkpoints")
        import_weights(source, shapes, store, description, lambda _: None)
    return config.run_folder


@torch.no_grad()
def peer_scores(model: Any, texts: list[list[int]], pad: int | None = None) -> Tensor:
    """Of transformers: one text after the other, or all in one batch that is padded with `pad`."""
    if pad is None:
        return torch.cat([model(torch.tensor([text])).logits[:, 0] for text in texts])
    longest = max(map(len, texts))
    tokens = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return model(tokens, attention_mask=mask).logits[:, 0]


def write_pairs(path: Path, count: int) -> list[dict[str, Any]]:
    """Questions whose chosen answers are numbers in figures, and the others in letters."""
    words = ("zero", "one", "two", "three", "four", "five", "six")
    records = [
        {"instruction": f"How many in row {n}?", "chosen": f"{n % 7}", "rejected": f"{words[n % 7]} or more"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records
