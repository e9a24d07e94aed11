"""One commit for all that a step has changed."""

import json
from pathlib import Path

import pytest

from llmscale.rlhf.transaction import FOLDER, Transaction, commit, kept_steps, manifest_hash, newest


def checkpoint(folder: Path, step: int, content: str = "whole") -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(f"{content} {folder.name} {step}")
    return path


def folders(run: Path) -> dict[str, Path]:
    return {"actor": run / "checkpoints", "critic": run / "critic" / "checkpoints"}


def committed(run: Path, step: int) -> Transaction:
    hashes = {role: manifest_hash(checkpoint(folder, step)) for role, folder in folders(run).items()}
    made = Transaction(step, hashes, {"prompts": 4 * step})
    commit(run, made)
    return made


def test_the_newest_is_found_and_the_last_two_are_kept(tmp_path: Path) -> None:
    assert newest(tmp_path, folders(tmp_path)) is None and kept_steps(tmp_path) == []
    made = [committed(tmp_path, step) for step in (2, 4, 6)]
    assert newest(tmp_path, folders(tmp_path)) == made[-1]
    assert newest(tmp_path, folders(tmp_path), before=6) == made[-2]
    assert kept_steps(tmp_path) == [4, 6]


@pytest.mark.parametrize("role", ["actor", "critic"])
@pytest.mark.parametrize("harm", ["gone", "other"])
def test_a_step_of_which_a_part_is_missing_is_passed_over(tmp_path: Path, role: str, harm: str) -> None:
    made = [committed(tmp_path, step) for step in (3, 5)]
    manifest = folders(tmp_path)[role] / "step-00000005" / "manifest.json"
    manifest.unlink() if harm == "gone" else manifest.write_text("another save of step 5")
    assert newest(tmp_path, folders(tmp_path)) == made[0]


def test_checkpoints_without_their_transaction_do_not_count(tmp_path: Path) -> None:
    """A driver that died between the two saves, or before the commit, has left them."""
    made = committed(tmp_path, 1)
    checkpoint(folders(tmp_path)["actor"], 2)
    assert newest(tmp_path, folders(tmp_path)) == made


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"step": 9}', '{"step": "x", "checkpoints": {}, "state": {}}']
)
def test_a_damaged_file_is_passed_over(tmp_path: Path, content: str) -> None:
    made = committed(tmp_path, 1)
    (tmp_path / FOLDER / "step-00000009.json").write_text(content)
    assert newest(tmp_path, folders(tmp_path)) == made


def test_other_roles_than_the_run_has_do_not_count(tmp_path: Path) -> None:
    committed(tmp_path, 1)
    alone = {"actor": folders(tmp_path)["actor"]}
    assert newest(tmp_path, alone) is None
    assert json.loads((tmp_path / FOLDER / "step-00000001.json").read_text())["step"] == 1
