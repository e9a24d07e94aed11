"""The run folder: one writer, and a resume only with what the checkpoint was made with."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.runtime.run_folder import check_folder, check_resume, locked, write_config

TRY = (
    "import pathlib, sys\n"
    "from llmscale.config.problems import InputError\n"
    "from llmscale.runtime.run_folder import locked\n"
    "try:\n"
    "    with locked(pathlib.Path(sys.argv[1])): print('held')\n"
    "except InputError as error: print(error)\n"
)


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate(sections)


def try_elsewhere(folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", TRY, str(folder)], capture_output=True, text=True, check=True
    ).stdout


def test_two_trains_on_one_run_refuse(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "name"
    with locked(folder):
        refused = try_elsewhere(folder)
        assert "trains in" in refused and "llmscale cancel name" in refused
    assert try_elsewhere(folder) == "held\n"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "name"
    assert [problem.key for problem in check_folder(folder)] == ["run.root"]
    with pytest.raises(InputError), locked(folder):
        pass
    assert check_folder(tmp_path / "new" / "name") == []


def test_allowed_changes_are_written_and_the_old_config_kept(tmp_path: Path) -> None:
    first, second = config(optimizer={"lr": 1e-3}), config(optimizer={"lr": 1e-4})
    for changed in (first, first, second, first):
        assert check_resume(changed, tmp_path, committed_step=5) == []
        write_config(changed, tmp_path)
    assert read_resolved(tmp_path / "config.yaml") == first
    assert read_resolved(tmp_path / "config-1.yaml") == first
    assert read_resolved(tmp_path / "config-2.yaml") == second
    assert not (tmp_path / "config-3.yaml").exists()


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"hidden_size": 512}),
        ("train", {"sequence_length": 512}),
        ("train", {"seed": 5}),
        ("data", {"train": ["other"]}),
        ("rlhf", {"algorithm": "grpo"}),
    ],
)
def test_what_a_checkpoint_stands_on_cannot_change(
    tmp_path: Path, section: str, change: dict[str, Any]
) -> None:
    write_config(config(), tmp_path)
    changed = config(**{section: change})
    problems = check_resume(changed, tmp_path, committed_step=5)
    assert [problem.key.split(".")[0] for problem in problems] == [section]
    assert check_resume(changed, tmp_path, committed_step=None) == []


def test_required_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    required = config(checkpoint={"resume": "required"})
    assert [problem.key for problem in check_resume(required, tmp_path, None)] == ["checkpoint.resume"]
    assert check_resume(required, tmp_path, 5) == []
