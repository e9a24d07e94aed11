"""Tokenising: every source, the same bytes however it is done, and through a kill."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset

from llmscale.config.problems import InputError
from llmscale.data import sources
from llmscale.data.corpus import corpus_file, read_index, read_info
from llmscale.data.sources import SourceOptions
from llmscale.data.tokenize import tokenize
from llmscale.data.tokenizer import open_encoder, tokenizer_hash
from tests.data.corpora import STANDARD_LIBRARY

TEXTS = ["first\n", "  zweiter größer", "", "third </s>\r\n", "x" * 300, "日本語"]
FULL = [text for text in TEXTS if text]


def files_of(prefix: Path) -> dict[str, bytes]:
    return {suffix: corpus_file(prefix, suffix).read_bytes() for suffix in (".bin", ".idx", ".json")}


def documents_of(prefix: Path, tokenizer: Path) -> list[str]:
    """Documents as Megatron reads them, decoded."""
    dataset, encoder = IndexedDataset(str(prefix)), open_encoder(tokenizer)
    documents = [dataset[number].tolist() for number in range(len(dataset))]
    assert all(tokens[-1] == 2 and 2 not in tokens[:-1] for tokens in documents)
    return [encoder.decode(tokens[:-1], skip_special_tokens=False) for tokens in documents]


def write_source(folder: Path, kind: str) -> str:
    """`TEXTS` in one of the forms that text comes in; returns what the user would name."""
    lines = "\n\n".join(json.dumps({"body": text, "id": 1}) for text in TEXTS).encode() + b"\n"
    if kind == "jsonl":
        (folder / "a.jsonl").write_bytes(lines)
        return str(folder / "a.jsonl")
    if kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
        return str(folder / "a.jsonl.gz")
    if kind == "jsonl.zst":
        half = lines.index(b"\n") + 1
        frames = [zstandard.compress(part) for part in (lines[:half], lines[half:])]
        (folder / "a.jsonl.zst").write_bytes(b"".join(frames))
        return str(folder / "a.jsonl.zst")
    if kind == "parquet":
        table = pyarrow.table({"id": range(len(TEXTS)), "body": TEXTS})
        pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=2)
        return str(folder / "a.parquet")
    if kind == "hf":
        datasets.Dataset.from_dict({"body": TEXTS}).to_parquet(folder / "hub" / "train.parquet")
        return f"hf:{folder / 'hub'}"
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return str(folder)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "hf"])
def test_each_source_gives_its_documents(
    tmp_path: Path, bpe_folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    source = write_source(tmp_path / "in", kind)
    prefix = tmp_path / "out" / "corpus.v1"
    result = tokenize([source], bpe_folder, prefix, options=SourceOptions(text_key="body"))
    assert documents_of(prefix, bpe_folder) == FULL
    assert result.empty == 1
    info = read_info(prefix)
    assert info == result.info
    assert info.tokenizer_hash == tokenizer_hash(bpe_folder)
    assert (info.documents, info.end_of_document_id, info.vocabulary_size) == (len(FULL), 2, 2000)
    assert info.text_bytes == sum(len(text.encode()) for text in FULL)
    index = read_index(prefix)
    assert info.tokens == index.tokens and len(index.lengths) == len(FULL)
    assert sorted(file.name for file in prefix.parent.iterdir()) == [
        "corpus.v1.bin",
        "corpus.v1.idx",
        "corpus.v1.json",
    ]


def test_lines_are_cut_into_parts_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Path(write_source(tmp_path, "jsonl"))
    for size in (1, 7, 40, 1000):
        monkeypatch.setattr("llmscale.data.formats.jsonl.PART_BYTES", size)
        parts = sources.parts_of_sources([str(path)], SourceOptions(text_key="body"))
        assert [text for part in parts for text in part.documents()] == TEXTS
        assert sum(part.size for part in parts) == path.stat().st_size


def test_trees_are_filtered_and_in_order(tmp_path: Path):
    for name in ("b/z.py", "b/a.py", "a.py", "a.txt", ".git/x.py", "node_modules/y.py", "c/data.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    options = SourceOptions(suffixes=(".py", ".jsonl"), exclude=("node_modules",))
    parts = sources.parts_of_sources([str(tmp_path)], options)
    texts = [text for part in parts for text in part.documents()]
    assert [json.loads(t)["text"] if t and "{" in t else t for t in texts] == [
        "a.py",
        "b/a.py",
        "b/z.py",
        "c/data.jsonl",
    ]


def test_what_is_no_text_is_left_out_and_counted(tmp_path: Path, bpe_folder: Path):
    (tmp_path / "a.txt").write_bytes(b"latin \xe9")
    lines = [json.dumps({"text": "half a pair \ud800"}), json.dumps({"text": "good"})]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    result = tokenize([str(tmp_path)], bpe_folder, tmp_path / "out")
    assert (result.not_text, result.info.documents) == (2, 1)
    assert documents_of(tmp_path / "out", bpe_folder) == ["good"]


def standard_sources() -> tuple[list[str], SourceOptions]:
    folders = [str(STANDARD_LIBRARY / name) for name in ("asyncio", "email", "json", "unittest")]
    return folders, SourceOptions(suffixes=(".py",))


@pytest.fixture()
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART_BYTES", 60_000)


@pytest.mark.usefixtures("small_parts")
def test_the_number_of_workers_changes_nothing(tmp_path: Path, bpe_folder: Path):
    names, options = standard_sources()
    seen: list[int] = []
    tokenize(names, bpe_folder, tmp_path / "one", workers=1, options=options)
    tokenize(
        names,
        bpe_folder,
        tmp_path / "three",
        workers=3,
        options=options,
        progress=lambda done, total, counts: seen.append(done * 1000 // total),
    )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")
    assert len(seen) > 10 and seen == sorted(seen) and (seen[0], seen[-1]) == (0, 1000)


KILLED_RUN = """
import sys
from pathlib import Path
from llmscale.data import sources
from llmscale.data.tokenize import tokenize
sources.PART_BYTES = 60_000
if __name__ == "__main__":
    names = sys.argv[3:]
    tokenize(names, Path(sys.argv[1]), Path(sys.argv[2]), workers=2,
             options=sources.SourceOptions(suffixes=(".py",)))
"""


@pytest.mark.usefixtures("small_parts")
def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, bpe_folder: Path):
    names, options = standard_sources()
    tokenize(names, bpe_folder, tmp_path / "whole", workers=2, options=options)
    prefix, script = tmp_path / "killed", tmp_path / "run.py"
    script.write_text(KILLED_RUN)
    command = [sys.executable, str(script), str(bpe_folder), str(prefix), *names]
    process = subprocess.Popen(command, start_new_session=True, env=os.environ)
    parts = corpus_file(prefix, ".parts")
    deadline = time.monotonic() + 30
    while len(list(parts.glob("*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not corpus_file(prefix, ".json").exists()
    finished = len(list(parts.glob("*.npz")))
    _wait_for_group_to_end(process.pid)
    result = tokenize(names, bpe_folder, prefix, workers=1, options=options)
    assert result.resumed_parts >= finished
    assert files_of(prefix) == files_of(tmp_path / "whole")
    assert not parts.exists()


def _wait_for_group_to_end(group: int) -> None:
    """The workers of a killed run must not stay behind."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("workers outlived the run that started them")


def test_parts_of_another_run_are_not_taken(tmp_path: Path, bpe_folder: Path):
    (tmp_path / "a.txt").write_text("alpha")
    parts = corpus_file(tmp_path / "out", ".parts")
    parts.mkdir()
    (parts / "plan").write_text("of something else")
    np.savez(parts / "00000000.npz", lengths=[9], counts=[9] * 6)
    result = tokenize([str(tmp_path / "a.txt")], bpe_folder, tmp_path / "out")
    assert result.resumed_parts == 0
    assert documents_of(tmp_path / "out", bpe_folder) == ["alpha"]


def test_an_existing_corpus_is_left_alone(tmp_path: Path, bpe_folder: Path):
    (tmp_path / "a.txt").write_text("alpha")
    tokenize([str(tmp_path)], bpe_folder, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(InputError, match="is there already"):
        tokenize([str(tmp_path)], bpe_folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def bad_source(folder: Path, kind: str) -> Path:
    contents = {
        "no json": ("a.jsonl", b'{"text": "good"}\n{"text": \n'),
        "no field": ("a.jsonl", b'{"body": "good"}\n'),
        "no object": ("a.jsonl", b"[1]\n"),
        "cut gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "good"}\n' * 100)[:-20]),
        "no zstd": ("a.jsonl.zst", b"not compressed at all"),
        "no parquet": ("a.parquet", b"PAR1 not a table"),
        "empty": ("a.txt", b""),
    }
    if kind == "no column":
        pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), folder / "a.parquet")
        return folder / "a.parquet"
    if kind == "number column":
        pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), folder / "a.parquet")
        return folder / "a.parquet"
    name, content = contents[kind]
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    "kind, message",
    [
        ("no json", "is not JSON"),
        ("no field", "no text in 'text'"),
        ("no object", "no text in 'text'"),
        ("cut gzip", "damaged"),
        ("no zstd", "damaged"),
        ("no parquet", "no parquet file, or damaged"),
        ("no column", "may be one of: body"),
        ("number column", "holds int64, not text"),
        ("empty", "holds no text"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, bpe_folder: Path, kind: str, message: str):
    source = bad_source(tmp_path, kind)
    with pytest.raises(InputError, match=message):
        tokenize([str(source)], bpe_folder, tmp_path / "out")
    assert not corpus_file(tmp_path / "out", ".json").exists()


def test_all_problems_are_told_at_once(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        tokenize([str(tmp_path / "absent"), str(tmp_path / "empty")], tmp_path, tmp_path / "out")
    assert [problem.key for problem in caught.value.problems] == ["INPUT", "INPUT", "--tokenizer"]
