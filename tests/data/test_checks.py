"""Bad corpora and tokenizers, each found before anything starts."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.checks import check_data, resolved_vocabulary_size
from llmscale.data.corpus import CorpusDamaged, corpus_file, read_index
from llmscale.data.tokenizer import tokenizer_hash
from tests.data.corpora import config_with, write_corpus


@pytest.fixture()
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def patch(suffix: str, start: int, content: bytes) -> Callable[[Path], None]:
    def change(prefix: Path) -> None:
        data = bytearray(corpus_file(prefix, suffix).read_bytes())
        data[start : start + len(content)] = content
        corpus_file(prefix, suffix).write_bytes(data)

    return change


def cut(suffix: str, keep: float) -> Callable[[Path], None]:
    def change(prefix: Path) -> None:
        data = corpus_file(prefix, suffix).read_bytes()
        corpus_file(prefix, suffix).write_bytes(data[: int(len(data) * keep)])

    return change


def remove(*suffixes: str) -> Callable[[Path], None]:
    return lambda prefix: [corpus_file(prefix, suffix).unlink() for suffix in suffixes] and None


def longer(suffix: str) -> Callable[[Path], None]:
    return lambda prefix: (
        corpus_file(prefix, suffix).write_bytes(corpus_file(prefix, suffix).read_bytes() + b"\0\0") and None
    )


def change_info(**fields: object) -> Callable[[Path], None]:
    def change(prefix: Path) -> None:
        info = json.loads(corpus_file(prefix, ".json").read_text())
        corpus_file(prefix, ".json").write_text(json.dumps({**info, **fields}))

    return change


LENGTHS, OFFSETS, ENDS = 34, 34 + 4 * 200, 34 + 12 * 200


@pytest.mark.parametrize(
    "damage, message",
    [
        (remove(".bin"), "corpus.bin missing"),
        (remove(".idx"), "corpus.idx missing"),
        (remove(".bin", ".idx"), "corpus.idx and corpus.bin missing"),
        (remove(".json"), "corpus.json missing"),
        (cut(".bin", 0.5), "corpus.bin has .* cut short"),
        (cut(".bin", 0), "holds no documents"),
        (longer(".bin"), "corpus.bin has .* or of another corpus"),
        (cut(".idx", 0.5), "corpus.idx has .* cut short"),
        (cut(".idx", 0.005), "not even a header"),
        (cut(".idx", 0), "not even a header"),
        (longer(".idx"), "corpus.idx has"),
        (cut(".json", 0.5), "corpus.json cannot be read"),
        (patch(".idx", 0, b"X"), "not a Megatron index"),
        (patch(".idx", 9, b"\x02"), "not a Megatron index"),
        (patch(".idx", 17, b"\x63"), "dtype code 99"),
        (patch(".idx", 17, b"\x04"), "offsets do not follow"),
        (patch(".idx", 18, b"\x01"), "where its header asks for"),
        (patch(".idx", LENGTHS + 40, b"\xff\x01"), "offsets do not follow"),
        (patch(".idx", LENGTHS + 40, b"\xff\xff\xff\xff"), "offsets do not follow"),
        (patch(".idx", OFFSETS, b"\x01"), "offsets do not follow"),
        (patch(".idx", OFFSETS + 800, b"\xff"), "offsets do not follow"),
        (patch(".idx", ENDS, b"\x01"), "do not cover"),
        (patch(".idx", ENDS + 8 * 200, b"\x01"), "do not cover"),
        (change_info(documents=3), "of different corpora"),
        (change_info(tokens=3), "of different corpora"),
        (change_info(format_version=99), "format version 99"),
        (change_info(surprise=1), "cannot be read"),
        (change_info(vocabulary_size=1001), "more than model.vocabulary_size = 1,000"),
    ],
)
def test_each_damage_is_found(corpus: Path, damage: Callable[[Path], None], message: str):
    config = config_with([(corpus, 1)])
    assert check_data(config) == []
    damage(corpus)
    (problem,) = check_data(config)
    assert (problem.key, problem.value) == ("data.train.0.path", corpus)

    assert re.search(message, problem.message), problem.message


def test_damage_in_a_later_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = write_corpus(tmp_path / "corpus")
    monkeypatch.setattr("llmscale.data.corpus.OFFSETS_BLOCK", 64)
    assert len(read_index(corpus).lengths) == 200
    patch(".idx", OFFSETS + 8 * 64, b"\x01\x00")(corpus)
    with pytest.raises(CorpusDamaged):
        read_index(corpus)


def config_of(corpus: Path, **sections: dict[str, object]) -> Config:
    return config_with([(corpus, 1)], **sections)


def messages(config: Config) -> str:
    return "\n".join(str(problem) for problem in check_data(config))


def test_a_path_with_its_suffix_is_explained(corpus: Path):
    assert "without its suffix" in messages(config_of(corpus_file(corpus, ".bin")))


def test_another_tokenizer_is_found(corpus: Path, bpe_folder: Path):
    config = config_of(corpus, tokenizer={"path": str(bpe_folder)}, model={"vocabulary_size": None})
    assert "was made with another tokenizer" in messages(config)
    change_info(tokenizer_hash=tokenizer_hash(bpe_folder))(corpus)
    assert messages(config) == ""


def test_tokenizer_and_vocabulary(corpus: Path, bpe_folder: Path, tmp_path: Path):
    change_info(tokenizer_hash=tokenizer_hash(bpe_folder))(corpus)
    small = config_of(corpus, tokenizer={"path": str(bpe_folder)}, model={"vocabulary_size": 1999})
    assert "model.vocabulary_size = 1999: is smaller than the tokenizer's 2,000" in messages(small)
    absent = config_of(corpus, tokenizer={"path": str(tmp_path / "no")}, model={"vocabulary_size": None})
    assert "tokenizer.path = " in messages(absent) and "is no folder" in messages(absent)


def test_corpora_that_are_too_small(corpus: Path):
    tokens = read_index(corpus).tokens
    long = {"train": {"sequence_length": tokens}, "data": {"split": [1, 0, 0]}}
    assert "fewer than one sample" in messages(config_of(corpus, **long))
    fits = {"train": {"sequence_length": tokens - 1}, "data": {"split": [1, 0, 0]}}
    assert messages(config_of(corpus, **fits)) == ""


def test_validation_needs_documents_only_where_it_is_wanted(corpus: Path):
    nothing = {"split": [1, 0, 0]}
    assert messages(config_of(corpus, data=nothing)) == ""
    wanted = config_of(corpus, data=nothing, train={"validate_every": 10})
    assert "leaves 0 tokens to validate on" in messages(wanted)
    named = {"split": [1, 0, 0], "validation": [{"path": str(corpus)}]}
    assert messages(config_of(corpus, data=named, train={"validate_every": 10})) == ""


def test_all_problems_at_once_and_fast(corpus: Path, tmp_path: Path):
    config = config_with(
        [(corpus, 1), (tmp_path / "absent", 1)],
        tokenizer={"path": str(tmp_path)},
        data={"validation": [{"path": str(tmp_path / "gone")}]},
    )
    started = time.perf_counter()
    keys = [problem.key for problem in check_data(config)]
    assert time.perf_counter() - started < 0.5
    assert keys == ["tokenizer.path", "data.train.1.path", "data.validation.0.path"]


def test_vocabulary_size_is_the_models_or_the_tokenizers(corpus: Path, bpe_folder: Path):
    by_model = config_of(corpus, tokenizer={"path": str(bpe_folder)}, model={"vocabulary_size": 2048})
    assert resolved_vocabulary_size(by_model) == 2048
    by_tokenizer = config_of(corpus, tokenizer={"path": str(bpe_folder)}, model={"vocabulary_size": None})
    assert resolved_vocabulary_size(by_tokenizer) == 2000
    with pytest.raises(InputError, match="set it, or model.vocabulary_size"):
        resolved_vocabulary_size(config_of(corpus, model={"vocabulary_size": None}))
