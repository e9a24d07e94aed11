"""After a power loss at any moment there is a whole checkpoint, the new one or the one before."""

from pathlib import Path

import pytest

from llmscale.checkpoint import store
from tests.checkpoint.crash_states import count_fates, record_saves, syncs, violations, without
from tests.checkpoint.recorded_disk import Recorder

STARTS = [(1, 2), (3,)]
FOR_EACH_PREFIX, FOR_EACH_PREFIX_SOAK = 12, 1 << 20


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def recorder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    return record_saves(tmp_path_factory.mktemp("recorded") / "disk", request.param, STARTS)


def test_each_state_of_the_disk_has_a_whole_checkpoint(recorder: Recorder) -> None:
    kinds = {operation.kind for operation in recorder.operations}
    assert kinds == {"link", "unlink", "rename", "write", "sync"}
    assert [step for _, step in recorder.committed] == [1, 2, 3]
    count, found = violations(recorder, FOR_EACH_PREFIX, seed=1)
    assert found == []
    assert count > 3 * len(recorder.operations) // 2


@pytest.mark.soak
def test_each_of_many_states_of_the_disk_has_a_whole_checkpoint(recorder: Recorder) -> None:
    count, found = violations(recorder, FOR_EACH_PREFIX_SOAK, seed=2)
    assert found == []
    assert 1_000 < count <= count_fates(recorder.operations)


NEEDED = (
    "shard-00000.safetensors",
    "manifest.json",
    ".COMMITTED.pending",
    ".step-00000002.partial",  # the names in the folder, before it gets its own
    "checkpoints",  # that name
    ".step-00000002.partial",  # the marker's last name
    "checkpoints",  # the name of the folder that is removed
)
"""The syncs of one save of one rank that a power loss would punish, in their order."""


def sync_names(recorder: Recorder, numbers: list[int]) -> list[str]:
    """Without the save's random identity."""
    names = [recorder.operations[number].name.split(".") for number in numbers]
    return [".".join(part for part in name if len(part) != 32) for name in names]


def test_a_forgotten_sync_is_found(tmp_path: Path) -> None:
    """Each one alone: only the syncs of what is gone again before the commit are not missed."""
    recorder = record_saves(tmp_path / "disk", 1, [(1, 2)])
    commits = [at for at, _ in recorder.committed]
    second = [number for number in syncs(recorder) if number >= commits[0]]
    missed = [number for number in second if violations(without(recorder, number), 64, seed=3)[1]]
    assert sync_names(recorder, missed) == list(NEEDED)


def test_a_program_that_does_not_sync_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "sync_folder", lambda path: None)
    recorder = record_saves(tmp_path / "disk", 2, [(1, 2)])
    _, found = violations(recorder, 16, seed=4)
    assert any("was committed, and the run goes on from" in line for line in found)
