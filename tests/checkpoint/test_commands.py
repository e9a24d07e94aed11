"""`llmscale checkpoint list` and `verify` as a user calls them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.checkpoint_layouts import deal, make_tensors
from tests.checkpoint.simulated_ranks import save


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmscale", "checkpoint", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    for step in (10, 20):
        save(tmp_path / "checkpoints", step, deal(make_tensors(step), 2, 1))
    return tmp_path


def test_list_and_verify(run_folder: Path) -> None:
    listed = call("list", run_folder)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("committed") == 2
    verified = call("verify", run_folder)
    assert verified.returncode == 0 and verified.stdout.count("sound") == 2, verified


def test_damage_is_named_and_ends_with_1(run_folder: Path) -> None:
    shard = run_folder / "checkpoints" / "step-00000020" / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    verified = call("verify", run_folder)
    assert verified.returncode == 1 and "shard-00001.safetensors" in verified.stdout.replace("\n", "")
    assert call("verify", run_folder / "checkpoints" / "step-00000010").returncode == 0
    shard.unlink()
    assert "damaged" in call("list", run_folder).stdout


def test_a_path_without_checkpoints_is_bad_input(tmp_path: Path) -> None:
    assert call("list", tmp_path / "nothing").returncode == 2


def test_listing_does_not_load_torch() -> None:
    code = "import sys, llmscale.checkpoint.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
