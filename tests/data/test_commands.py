"""`llmscale data`: from text to a corpus and a look at it, and bad input."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmscale.commands.data import app
from llmscale.config.problems import InputError
from llmscale.data.corpus import read_info
from llmscale.data.tokenizer import tokenizer_hash
from tests.data.corpora import STANDARD_LIBRARY


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokenizer/` and the corpus `text`, made by the commands."""
    folder = tmp_path_factory.mktemp("made")
    text = STANDARD_LIBRARY / "email"
    output = run(
        "tokenizer", text, "--suffix", ".py", "--exclude", "mime", "--output", folder / "tokenizer",
        "--vocabulary-size", 1000, "--kind", "bpe", "--threads", 2,
    )  # fmt: skip
    assert "1,000" in output and "agrees with SentencePiece" in output
    output = run(
        "tokenize", text, "--suffix", ".py", "--tokenizer", folder / "tokenizer", "--output", folder / "text",
        "--workers", 2,
    )  # fmt: skip
    info = read_info(folder / "text")
    for shown in (
        "tokens/s",
        f"{info.tokens:,}",
        f"{info.documents:,}",
        f"{info.text_bytes / info.tokens:.2f}",
    ):
        assert shown in output
    return folder


def test_inspect_shows_figures_and_samples(made: Path):
    output = run(
        "inspect", made / "text", "--tokenizer", made / "tokenizer", "-n", 2, "--sequence-length", 64
    )
    info = read_info(made / "text")
    assert f"{info.tokens:,}" in output and tokenizer_hash(made / "tokenizer")[:20] in output
    assert "sample 1" in output and "sample 2" not in output
    sample = output.split("crossed out")[1].split("\n", 1)[1].split("──")[0]
    words = [line.strip() for line in sample.splitlines() if len(line.strip()) > 20]
    everything = "".join(file.read_text() for file in (STANDARD_LIBRARY / "email").rglob("*.py"))
    assert words and words[0] in everything


def test_inspect_tells_labels_that_do_not_count(made: Path):
    longer = read_info(made / "text").tokens + 1000
    from_rest = run("inspect", made / "text", "-t", made / "tokenizer", "-n", 1, "--sequence-length", longer)
    assert "<unk>" * 100 in from_rest.replace("\n", "")


def test_inspect_refuses_what_does_not_belong_together(made: Path, bpe_folder: Path):
    with pytest.raises(InputError, match="is not the one that made this corpus"):
        run("inspect", made / "text", "--tokenizer", bpe_folder)
    with pytest.raises(InputError, match=r"absent.idx and absent.bin missing"):
        run("inspect", made / "absent", "--tokenizer", bpe_folder)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tokenize", "absent", "--tokenizer", "nowhere", "--output", "out"], "no such file or folder"),
        (["tokenizer", ".", "--output", "out"], "holds no file that ends with"),
        (["tokenizer", ".", "--output", "out", "--kind", "words"], "must be bpe or unigram"),
    ],
)
def test_bad_input_ends_with_exit_code_2(tmp_path: Path, arguments: list[str], message: str):
    command = [sys.executable, "-m", "llmscale", "data", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []
