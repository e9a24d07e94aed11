"""Locks left behind by killed builds go, locks of living builds stay."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmscale.parallel import extensions

HOLD = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def on_the_machine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, what is asked is what holds outside containers."""
    monkeypatch.setattr(extensions, "_sees_all_processes", lambda: True)


def test_in_a_container_a_young_lock_may_be_anybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "_sees_all_processes", lambda: False)
    lock = tmp_path / "op" / "lock"
    lock.parent.mkdir()
    lock.touch()
    assert extensions.remove_stale_locks(tmp_path) == []
    long_ago = time.time() - 2 * extensions.LONGEST_BUILD_SECONDS
    os.utime(lock, (long_ago, long_ago))
    assert extensions.remove_stale_locks(tmp_path) == [lock]


def test_only_a_killed_builders_lock_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "some_op" / "lock"
    lock.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "held\n"
        assert extensions.remove_stale_locks(tmp_path) == []
        assert lock.exists()
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        assert lock.exists()
        assert extensions.remove_stale_locks(tmp_path) == [lock]
        assert not lock.exists()


def test_a_folder_that_is_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "lock").touch()
    monkeypatch.setenv(extensions.VARIABLE, str(tmp_path))
    assert extensions.use_prebuilt_extensions() == tmp_path
    assert os.environ[extensions.VARIABLE] == str(tmp_path)
    assert not (tmp_path / "op" / "lock").exists()


def test_the_environments_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(extensions.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    folder = extensions.use_prebuilt_extensions()
    assert folder is not None
    assert folder.is_relative_to(tmp_path)
    assert os.environ.pop(extensions.VARIABLE) == str(folder)
