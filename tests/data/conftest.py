"""Text of Python's own standard library, and tokenizers trained on a part of it."""

import os
import sysconfig
from pathlib import Path

import pytest

from llmscale.data.train_tokenizer import train_tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def sources_of(*folders: str) -> list[str]:
    """The Python files of folders of the standard library, as text with its line ends as they are."""
    files = sorted(file for folder in folders for file in (STANDARD_LIBRARY / folder).rglob("*.py"))
    return [file.read_bytes().decode(errors="replace") for file in files]


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
