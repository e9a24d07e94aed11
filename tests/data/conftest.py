"""Tokenizers trained on a part of Python's own standard library."""

import os
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from llmscale.data.train_tokenizer import train_tokenizer
from tests.data.corpora import sources_of

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def training_texts() -> list[str]:
    return sources_of("asyncio", "json", "email", "unittest", "importlib")


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory, training_texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "bpe"
    train_tokenizer(training_texts, folder, 2000, "bpe", threads=2)
    return folder


@pytest.fixture(scope="session")
def unigram_folder(tmp_path_factory: pytest.TempPathFactory, training_texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "unigram"
    train_tokenizer(training_texts[:50], folder, 2000, "unigram", threads=2)
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory, bpe_folder: Path) -> Path:
    """A tokenizer that knows the tokens of our templates."""
    folder = tmp_path_factory.mktemp("tokenizers") / "chat"
    shutil.copytree(bpe_folder, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def bos_folder(tmp_path_factory: pytest.TempPathFactory, chat_folder: Path) -> Path:
    """A tokenizer that puts BOS before a text."""
    folder = tmp_path_factory.mktemp("tokenizers") / "bos"
    shutil.copytree(chat_folder, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
