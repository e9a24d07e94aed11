"""Tokenizers trained on a part of Python's own standard library."""

import os
from pathlib import Path

import pytest

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
