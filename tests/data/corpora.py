"""Text and small corpora for the tests of this folder."""

import sysconfig
from pathlib import Path

import numpy as np

from llmscale.config.schema import Config
from llmscale.data.corpus import CorpusInfo, corpus_file, write_index, write_info

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def sources_of(*folders: str) -> list[str]:
    """The Python files of folders of the standard library, as text with its line ends as they are."""
    found = (file for folder in folders for file in (STANDARD_LIBRARY / folder).rglob("*.py"))
    files = sorted(file for file in found if "site-packages" not in file.parts)
    return [file.read_bytes().decode(errors="replace") for file in files]


def write_corpus(
    prefix: Path, documents: int = 200, vocabulary: int = 1000, seed: int = 0, first: int = 0
) -> Path:
    """Documents of 1 to 120 tokens, no two tokens alike modulo the vocabulary's cycle; returns `prefix`."""
    lengths = np.random.RandomState(seed).randint(1, 121, documents).astype(np.int32)
    tokens = ((first + np.arange(int(lengths.sum()))) % vocabulary).astype(np.uint16)
    corpus_file(prefix, ".bin").write_bytes(tokens.tobytes())
    with corpus_file(prefix, ".idx").open("wb") as file:
        write_index(file, [lengths], np.uint16)
    info = CorpusInfo(
        tokenizer_hash="0" * 64,
        vocabulary_size=vocabulary,
        end_of_document_id=0,
        documents=documents,
        tokens=len(tokens),
        text_bytes=4 * len(tokens),
        sources=["made up"],
        bin_bytes=corpus_file(prefix, ".bin").stat().st_size,
        idx_bytes=corpus_file(prefix, ".idx").stat().st_size,
    )
    with corpus_file(prefix, ".json").open("wb") as file:
        write_info(info, file)
    return prefix


def config_with(train: list[tuple[Path, float]], /, **sections: dict[str, object]) -> Config:
    """A config that trains on corpora of (prefix, weight), with sections such as `train={"steps": 5}`."""
    entries = [{"path": str(path), "weight": weight} for path, weight in train]
    return Config.model_validate(
        {
            "model": {"vocabulary_size": 1000},
            **sections,
            "data": {"train": entries, **sections.get("data", {})},
            "train": {"sequence_length": 32, "global_batch_size": 8, **sections.get("train", {})},
        }
    )
