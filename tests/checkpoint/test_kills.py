"""SIGKILL at random moments of saving, in real processes that share nothing but the folder."""

from pathlib import Path

import pytest

from tests.checkpoint.kills import WORLDS, kill_world, kill_writers
from tests.distributed.trainings import Place


@pytest.mark.parametrize(("ranks", "kills"), [(1, 100), (2, 20)])
def test_kills_while_saving_lose_nothing(tmp_path: Path, ranks: int, kills: int) -> None:
    tally = kill_writers(tmp_path / "checkpoints", ranks, kills, seed=ranks)
    assert tally.faults == []
    assert tally.kills == kills and tally.torn > 0 and tally.committed > 0


def test_kills_of_a_training_run_while_it_saves(tmp_path: Path) -> None:
    name, overrides = next(iter(WORLDS.items()))
    tally = kill_world(Place.make(tmp_path), "world", overrides, kills=6, seed=1)
    assert tally.faults == [] and tally.kills == 6, name


@pytest.mark.soak
@pytest.mark.parametrize(("ranks", "kills"), [(1, 1500), (2, 380)])
def test_many_kills_while_saving_lose_nothing(tmp_path: Path, ranks: int, kills: int) -> None:
    tally = kill_writers(tmp_path / "checkpoints", ranks, kills, seed=10 + ranks)
    assert tally.faults == [] and tally.kills == kills


@pytest.mark.soak
@pytest.mark.parametrize("name", WORLDS)
def test_many_kills_of_training_runs_while_they_save(tmp_path: Path, name: str) -> None:
    place = Place.make(tmp_path)
    for part in range(2):
        tally = kill_world(place, f"world-{part}", WORLDS[name], kills=20, seed=10 + part)
        assert tally.faults == [] and tally.kills == 20
