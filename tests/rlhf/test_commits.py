"""Where a run goes on when one of its models' checkpoints is damaged inside, which its manifest does not
tell."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.rlhf.state import State
from llmscale.rlhf.transaction import Transaction, commit, manifest_hash
from llmscale.rlhf.workers.group import Group
from llmscale.run.rlhf_commits import Commits


@dataclass
class Loads:
    """A model of two ranks that goes on from the newest of its sound checkpoints."""

    folder: Path
    damaged: set[int]
    loaded: int | None = None

    def tell(self, method: str, newest: int) -> "Loads":
        assert method == "load"
        steps = [int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*")]
        self.loaded = max(
            (step for step in steps if step <= newest and step not in self.damaged), default=None
        )
        return self

    def results(self) -> list[Any]:
        return [self.loaded] * 2


def run(folder: Path, damaged: dict[str, set[int]], resume: str = "auto") -> tuple[Commits, dict[str, Loads]]:
    """A run of PPO with transactions of steps 1 and 2."""
    config = Config.model_validate(
        {
            "task": "rlhf",
            "run": {"root": folder.parent, "name": folder.name},
            "checkpoint": {"resume": resume},
        }
    )
    folders = {"actor": folder / "checkpoints", "critic": folder / "critic" / "checkpoints"}
    for step in (1, 2):
        for role, checkpoints in folders.items():
            place = checkpoints / f"step-{step:08d}"
            place.mkdir(parents=True)
            (place / "manifest.json").write_text(f"{role} {step}")
        hashes = {role: manifest_hash(one / f"step-{step:08d}") for role, one in folders.items()}
        commit(folder, Transaction(step, hashes, State(step, 4 * step).as_json()))
    models = {role: Loads(checkpoints, damaged.get(role, set())) for role, checkpoints in folders.items()}
    return Commits(config, cast(dict[Any, Group], models)), models


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_all_models_go_back_with_the_one_that_is_damaged(tmp_path: Path, role: str) -> None:
    commits, models = run(tmp_path / "run", {role: {2}})
    assert commits.load().state == State(1, 4)
    assert [model.loaded for model in models.values()] == [1, 1]


def test_nothing_is_damaged(tmp_path: Path) -> None:
    commits, models = run(tmp_path / "run", {})
    assert commits.load().state == State(2, 8)
    assert [model.loaded for model in models.values()] == [2, 2]


def test_a_run_without_a_sound_transaction_does_not_begin_anew(tmp_path: Path) -> None:
    commits, _ = run(tmp_path / "run", {"actor": {1}, "critic": {2}})
    with pytest.raises(InputError, match=r"transactions of the steps 1, 2.*checkpoint\.resume=never"):
        commits.load()


def test_one_that_is_asked_to_does(tmp_path: Path) -> None:
    commits, models = run(tmp_path / "run", {}, resume="never")
    assert commits.load().state == State()
    assert [model.loaded for model in models.values()] == [None, None]
