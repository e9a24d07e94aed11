"""A folder with a corpus and configs to submit, and a SLURM that only remembers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from llmscale_launcher.backends.table import BACKENDS

from llmscale.data.tokenize import tokenize
from llmscale.data.train_tokenizer import train_tokenizer
from tests.data.corpora import write_corpus
from tests.launcher.fake_backend import FakeBackend
from tests.launcher.fake_scheduler import FakeScheduler

CONFIG = """
model: {hidden_size: 32, layers: 2, heads: 2, vocabulary_size: 1000}
data: {train: [corpus]}
train: {steps: 12, global_batch_size: 8, sequence_length: 32}
cluster: {kind: slurm, nodes: 2, processes_per_node: 2}
"""

LARGE = """
model: {preset: llama3_405b, vocabulary_size: 1000}
data: {train: [corpus]}
train: {global_batch_size: 8192, sequence_length: 32, recompute: full}
parallel: {tensor: 8}
zero: 3
cluster: {kind: slurm, nodes: 1024, processes_per_node: 8, gpus_per_node: 8, elastic: 64, device: H200}
"""


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    """First on PATH."""
    fake = FakeScheduler(tmp_path / "fake-slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two configs and the corpus that they name; runs go to `runs/`."""
    folder = tmp_path / "place"
    folder.mkdir()
    write_corpus(folder / "corpus")
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "large.yaml").write_text(LARGE)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeBackend]]:
    """In the place of the local one."""
    monkeypatch.setitem(BACKENDS, "local", "tests.launcher.fake_backend:FakeBackend")
    FakeBackend.reset()
    yield FakeBackend
    FakeBackend.reset()


@pytest.fixture
def demo(place: Path) -> None:
    """A small corpus, a few conversations and preferences, where the demo's would lie."""
    texts = [f"Text {number} of {number**2} words, and no word more.\n" for number in range(500)]
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(texts, place / "demo" / "tokenizer", 380, "bpe", threads=1)
    (place / "demo" / "corpus").mkdir()
    tokenize(["texts.jsonl"], place / "demo" / "tokenizer", place / "demo" / "corpus" / "stdlib")
    records = {
        "sft": [{"prompt": "How many?", "completion": text} for text in texts],
        "preferences": [{"prompt": "How many?", "chosen": text, "rejected": f"No {text}"} for text in texts],
    }
    for kind, found in records.items():
        (place / "demo" / kind).mkdir()
        for name in ("train", "validation"):
            (place / "demo" / kind / f"{name}.jsonl").write_text(
                "".join(json.dumps(record) + "\n" for record in found)
            )
