"""`llmscale plan` as a user sees it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest


def run_plan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmscale", "plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "model: {preset: tiny, vocabulary_size: 8192}\ndata: {train: [nowhere]}\n"
        "train: {global_batch_size: 32, micro_batch_size: 4}\nparallel: {tensor: 2, pipeline: 2}\n"
        "cluster: {processes_per_node: 4}\n"
    )
    return path


def test_plan_needs_no_data(path: Path) -> None:
    start = time.perf_counter()
    result = run_plan(path)
    assert time.perf_counter() - start < 4
    assert result.returncode == 0, result.stderr
    for text in ("2 × 2 × 1 = 4 ranks", "7,145,728", "8,192", "optimizer", "activations", "logits"):
        assert text in result.stdout


def test_what_only_the_data_tells_is_no_number(path: Path) -> None:
    result = run_plan(path, "task=classify", "train.epochs=2")
    assert result.returncode == 0, result.stderr
    for text in ("those of the data", "2, whose steps the data tells", "5,048,576"):
        assert text in result.stdout
    assert "tokens in all" not in result.stdout
    known = run_plan(path, "task=classify", "classify.labels=[a, b, c]")
    assert f"{5_048_576 + 3 * 256:,}" in known.stdout
    assert "those of the data" not in known.stdout


def test_what_cannot_fit_is_refused_with_what_would(path: Path) -> None:
    result = run_plan(path, "model=llama3_8b", "--device", "L4", "train.sequence_length=8192")
    assert result.returncode == 2
    assert "Does not fit" in result.stdout
    assert "What would fit:" in result.stdout
    assert "cluster.nodes=" in result.stdout or "train.recompute=full" in result.stdout


def test_pools_of_reinforcement_learning() -> None:
    config, size = "configs/rlhf/tiny_four_models.yaml", "model.vocabulary_size=8192"
    result = run_plan(config, size)
    assert result.returncode == 0, result.stderr
    for text in ("answers: actor, reference", "scores: critic, reward", "2 × 1 CPU", "driver", "8 × 2 = 16"):
        assert text in result.stdout
    assert "tokens a second" not in result.stdout
    large = run_plan(config, size, "model=llama3_8b", "--device", "A100")
    assert large.returncode == 2
    for text in ("Does not fit: a process of the pool answers", "What would fit:", "processes=4"):
        assert text in large.stdout


def test_bad_input(path: Path) -> None:
    assert run_plan(path, "--device", "H101").returncode == 2
    result = run_plan(path, "model.vocabulary_size=null", "tokenizer.path=nowhere")
    assert result.returncode == 2
    assert "tokenizer.path" in result.stderr
