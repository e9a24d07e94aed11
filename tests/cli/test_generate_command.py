"""`llmscale generate` on a run that was trained for two steps, from outside."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmscale.checkpoint.errors import CheckpointError
from llmscale.commands.generate import Scribe
from llmscale.config.problems import InputError
from llmscale.config.tuning import SftSection
from llmscale.data.chat.encode import ChatEncoder
from llmscale.data.tokenizer import open_encoder
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.engine.sampling import SamplingOptions
from llmscale.run.generate import open_writer
from llmscale.run.rank_team import RanksFailed, RankTeam
from llmscale.run.target import find_target

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "12", "birds", "über", "den", "Bäumen"]
PROMPTS = "the cat sat\n\nüber den "


def llmscale(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "llmscale", *map(str, arguments)]
    return subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run; its weights are fp32, so that layouts agree to the last token."""
    folder = tmp_path_factory.mktemp("generate")
    documents = [" ".join(WORDS[i % len(WORDS)] for i in range(n, 40 * n, n)) for n in range(1, 40)]
    train_tokenizer(documents, folder / "tokenizer", 400)
    (folder / "text.txt").write_text("\n".join(documents))
    corpus = ["--tokenizer", folder / "tokenizer", "--output", folder / "corpus"]
    made = llmscale("data", "tokenize", folder / "text.txt", *corpus)
    assert made.returncode == 0, made.stderr
    config = {
        "run": {"root": str(folder / "runs"), "name": "small"},
        "model": {"hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "initializer_range": 0.2},
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {"train": [{"path": str(folder / "corpus")}]},
        "train": {"steps": 2, "sequence_length": 64, "precision": "fp32", "global_batch_size": 2},
        "logging": {"wandb": "off"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    trained = llmscale("train", folder / "config.yaml")
    assert trained.returncode == 0, trained.stderr
    return folder / "runs" / "small"


def test_run_and_checkpoint_write_the_same_under_any_layout(run: Path) -> None:
    options = ["--max-new-tokens", 12, "--seed", 7]
    one = llmscale("generate", "small", "--root", run.parent, *options, stdin=PROMPTS)
    assert one.returncode == 0, one.stderr
    texts = one.stdout.removesuffix("\n").split("\n---\n")
    assert len(texts) == 3
    for prompt, text in zip(PROMPTS.split("\n"), texts):
        assert text.startswith(prompt) and len(text) > len(prompt)
    assert "36 tokens in" in one.stderr and "tokens/s" in one.stderr
    checkpoint = run / "checkpoints" / "step-00000002"
    four = llmscale("generate", checkpoint, *options, "--tensor", 2, "--pipeline", 2, stdin=PROMPTS)
    assert (four.returncode, four.stdout) == (0, one.stdout), four.stderr


def test_bad_input_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    cases = [
        ([run, "cat", "--tensor", "3"], "does not divide model.heads = 4"),
        ([run, "cat " * 100], "the model takes 64"),
        ([run], "standard input is empty"),
        ([run, "cat", "--top-p", "0"], "must be above 0"),
        ([run, "cat", "--tokenizer", tmp_path], "has no tokenizer.json"),
        (["missing", "cat", "--root", run.parent], "no such run or checkpoint; runs under"),
        ([run / "logs", "cat"], "has no checkpoint yet"),
        ([tmp_path, "cat"], "config.json: model_type"),
    ]
    for arguments, message in cases:
        result = llmscale("generate", *arguments)
        assert result.returncode == 2, arguments
        assert message in result.stderr


def test_text_appears_in_whole_characters(run: Path) -> None:
    scribe = Scribe(find_target(str(run), run.parent))
    prompt, text = scribe.prompt("the cat "), "Bäumen € 🌳 saw"
    tokens = scribe.prompt(text).tokens
    continuation = scribe.continuation(prompt)
    parts = [continuation.add(token) for token in tokens]
    assert "".join(parts) == text and continuation.rest() == ""
    assert parts.count("") >= 3, "the tree is four bytes, of which the last shows it"
    cut = scribe.continuation(prompt)
    tree = scribe.prompt("🌳").tokens
    assert [*map(cut.add, tree[:2]), cut.rest()] == ["", "", "\N{REPLACEMENT CHARACTER}" * 2]
    assert cut.add(tokens[0]).startswith("\N{REPLACEMENT CHARACTER}" * 2 + "B")


def test_what_a_user_says_is_put_into_the_template(run: Path) -> None:
    target = find_target(str(run), run.parent)
    spoken = ChatEncoder(target.tokenizer, SftSection(chat_template="chatml"), target.positions)
    scribe = Scribe(target, spoken)
    prompt = scribe.prompt("the cat")
    assert prompt.text == "", "only the answer is written"
    whole = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    assert scribe.continuation(prompt).rest() == ""
    assert open_encoder(target.tokenizer).decode(prompt.tokens) == whole
    assert scribe.end_ids == spoken.stops
    with pytest.raises(InputError, match="the model takes 64"):
        scribe.prompt("cat " * 100)


def test_an_answer_is_written_alone(run: Path) -> None:
    result = llmscale("generate", run, "the cat", "--chat", "--max-new-tokens", 5)
    assert result.returncode == 0, result.stderr
    assert "the cat" not in result.stdout and "User" not in result.stdout
    assert "tokens/s" in result.stderr


def test_a_rank_that_is_killed_ends_the_command(run: Path) -> None:
    with open_writer(find_target(str(run), run.parent, tensor=2)) as writer:
        assert len(writer.generate([[5, 6]], SamplingOptions(max_new_tokens=3))[0]) == 3
        assert isinstance(writer, RankTeam)
        os.kill(writer.ranks[1].pid, signal.SIGKILL)
        with pytest.raises(RanksFailed, match="rank 1 ended: exit code -9"):
            writer.generate([[5, 6]], SamplingOptions(max_new_tokens=60))
        ranks = writer.ranks
    assert not any(rank.process.is_alive() for rank in ranks)


def test_a_damaged_checkpoint_fails_in_one_line(run: Path) -> None:
    shard = next((run / "checkpoints" / "step-00000002").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    result = llmscale("generate", run, "cat")
    assert result.returncode == 1
    assert "no sound checkpoint" in result.stderr and "Traceback" not in result.stderr
    with (
        pytest.raises(CheckpointError, match="no sound checkpoint"),
        open_writer(find_target(str(run), run.parent, pipeline=2)),
    ):
        pass
