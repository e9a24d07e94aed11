"""A Hugging Face folder as a model of ours: config, and the files of its tokenizer. No torch."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmscale.checkpoint.huggingface_folder import HuggingFaceFolder
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.tokenizer import TOKENIZER

CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def folder_config(
    found: HuggingFaceFolder, name: str, tokenizer: Path | None, vocabulary_size: int | None = None
) -> Config:
    """The config of a run that would have made this model; that of a head is said to be a reward's."""
    head = {} if found.outputs is None else {"task": "reward"}
    low = found.config.get("dtype", found.config.get("torch_dtype")) in ("bfloat16", "float16")
    model = found.model.model_copy(update={"vocabulary_size": vocabulary_size or found.model.vocabulary_size})
    return Config.model_validate(
        {
            "run": {"name": name},
            "model": model.model_dump(),
            "tokenizer": {"path": tokenizer},
            "train": {"sequence_length": found.model.max_positions, "precision": "bf16" if low else "fp32"},
            "logging": {"wandb": "off"},
            **head,
        }
    )


def folder_tokenizer(path: Path) -> Path | None:
    """The folder itself, if it has a tokenizer that llmscale reads."""
    return path if (path / TOKENIZER).is_file() else None


def refuse_filled(folder: Path) -> None:
    """
    Raises:
        InputError: the folder to be made is there already.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError([Problem("OUT", folder, "is there already, and not empty; choose another folder")])


def copy_tokenizer(
    source: Path, target: Path, template: str | None = None, pad_token: str | None = None
) -> None:
    """Copy the files that make a tokenizer, byte for byte, and nothing that could be run.

    Args:
        template: what its chat template shall be, where it is not what it was.
        pad_token: what shall fill rows up, where it is not what it was.
    """
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if template is not None:
        (target / CHAT_TEMPLATE).write_text(template)
    if pad_token is not None:
        config = target / TOKENIZER_CONFIG
        tree = json.loads(config.read_bytes()) if config.is_file() else {}
        config.write_bytes(json_file({**tree, "pad_token": pad_token}))


def json_file(tree: Mapping[str, Any]) -> bytes:
    """As the config files of such a folder are written."""
    return json.dumps(tree, indent=2, sort_keys=True).encode() + b"\n"
