"""The command line from outside: help, bad input, and commands that read run folders."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from llmscale_kernels.cpu import library
from llmscale_kernels.dispatch import path_and_reason

from tests.cli.synthetic import make_run

TINY = "configs/pretrain/tiny.yaml"


def llmscale(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmscale", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )


def test_help_is_quick_and_names_every_command(repository: Path) -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = llmscale(repository, "--help")
        seconds.append(time.perf_counter() - began)
    print(f"--help: {min(seconds):.2f} s")
    assert result.returncode == 0
    for command in (
        "train",
        "status",
        "logs",
        "cancel",
        "plan",
        "report",
        "generate",
        "data",
        "config",
        "doctor",
    ):
        assert f" {command} " in result.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["train", "status", "logs", "cancel", "report", "doctor", "config"])
def test_help_of_each_command(repository: Path, command: str) -> None:
    result = llmscale(repository, command, "--help")
    assert result.returncode == 0
    assert f"llmscale {command}" in result.stdout


def test_unknown_command_is_bad_usage(repository: Path) -> None:
    result = llmscale(repository, "trane")
    assert result.returncode == 2
    assert "trane" in result.stderr


BAD = {
    "train.stepss=5": "train.steps",
    "optimiser.lr=1": "optimizer",
    "train.global_batch_size=-1": "train.global_batch_size",
    "zero.stage=2": "zero.stage",
    "parallel.tensor=3": "parallel.tensor",
    "optimizer.lr=-1": "optimizer.lr",
    "run.name=../../outside": "run.name",
    "cluster.kind=mars": "cluster.kind",
    "parallel.context=2": "parallel.context",
}


def test_everything_bad_is_listed_at_once_and_quickly(repository: Path, tmp_path: Path) -> None:
    began = time.perf_counter()
    result = llmscale(repository, "train", TINY, f"run.root={tmp_path / 'runs'}", *BAD)
    seconds = time.perf_counter() - began
    assert result.returncode == 2
    for named in BAD.values():
        assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert seconds < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", BAD)
def test_each_bad_setting_is_refused(repository: Path, tmp_path: Path, override: str) -> None:
    result = llmscale(repository, "config", "show", TINY, override)
    assert (result.returncode, result.stdout) == (2, "")
    assert BAD[override] in result.stderr


def test_missing_corpus_and_folder_are_listed_together(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    overrides = [f"run.root={tmp_path / 'file' / 'runs'}", f"data.train=[{tmp_path / 'corpus'}]"]
    began = time.perf_counter()
    result = llmscale(repository, "train", TINY, *overrides, f"tokenizer.path={tmp_path / 'tokenizer'}")
    assert time.perf_counter() - began < 2
    assert result.returncode == 2
    for key in ("run.root", "data.train", "tokenizer.path"):
        assert key in result.stderr


def test_missing_config(repository: Path) -> None:
    result = llmscale(repository, "train", "no/such.yaml")
    assert result.returncode == 2
    assert "no such file" in result.stderr


def test_config_schema_has_the_doc_strings(repository: Path) -> None:
    schema = json.loads(llmscale(repository, "config", "schema").stdout)
    properties = schema["$defs"]["TrainSection"]["properties"]
    assert properties["steps"]["description"] == "Optimizer steps of the whole schedule."
    assert schema["additionalProperties"] is False


def test_config_show_fills_everything_in(repository: Path) -> None:
    result = llmscale(repository, "config", "show", TINY, "optimizer.lr=3e-4")
    assert result.returncode == 0
    assert "lr: 0.0003" in result.stdout
    assert "ffn_size: 704" in result.stdout


def test_status_of_one_and_all(repository: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "first")
    make_run(tmp_path, "second")
    everything = llmscale(repository, "status", "--root", tmp_path).stdout
    assert "first" in everything and "second" in everything and "100/100" in everything
    one = llmscale(repository, "status", "first", "--root", tmp_path).stdout
    for found in ("done", "rank 2 on node-7", "killed by SIGSEGV", "Segmentation fault"):
        assert found in one


def test_unknown_run_names_the_known(repository: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "first")
    result = llmscale(repository, "status", "fisrt", "--root", tmp_path)
    assert result.returncode == 2
    assert "there are: first" in result.stderr


def test_logs_shows_the_last_lines_of_each_rank(repository: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "first")
    lines = llmscale(repository, "logs", "first", "--root", tmp_path, "-n", 3).stdout.splitlines()
    assert lines == ["[0] line 47", "[0] line 48", "[0] line 49", "[1] hello"]
    followed = llmscale(repository, "logs", "first", "--root", tmp_path, "--rank", 1, "-f").stdout
    assert followed.splitlines() == ["[1] hello"]


def test_cancel_of_a_run_that_does_not_run(repository: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "first")
    result = llmscale(repository, "cancel", "first", "--root", tmp_path)
    assert result.returncode == 2
    assert "does not run" in result.stderr


def test_cancel_stops_the_agent_and_no_other_process(repository: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path, "first")
    program = (
        "import pathlib, signal, sys\n"
        "from llmscale.runtime.run_folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); signal.sigwait([signal.SIGTERM])\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert agent.stdout is not None and agent.stdout.readline() == "held\n"
        assert "starting" in llmscale(repository, "status", "first", "--root", tmp_path).stdout
        assert llmscale(repository, "cancel", "first", "--root", tmp_path).returncode == 0
        assert agent.wait(10) is not None
    finally:
        agent.kill()
        agent.wait()
    stale = json.loads((folder / "agent.json").read_text())
    (folder / "agent.json").write_text(json.dumps({**stale, "pid": os.getpid()}))
    assert llmscale(repository, "cancel", "first", "--root", tmp_path).returncode == 2


def test_doctor_finds_this_installation_sound(repository: Path) -> None:
    result = llmscale(repository, "doctor")
    assert "megatron-core" in result.stdout and "deepspeed" in result.stdout
    assert "C++ compiler" in result.stdout
    assert "element-wise kernels" in result.stdout
    assert path_and_reason(torch.cuda.is_available()) in result.stdout
    assert "kernels for CPUs" in result.stdout and library.choice().reason in result.stdout
    assert "float32 products" in result.stdout and "bfloat16 products" in result.stdout
