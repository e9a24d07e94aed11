"""Contenders take turns, each run by its interpreter; one that fails says why, and its ranks end."""

import os
import stat
from pathlib import Path

import pytest

from bench.rounds import Contender, run_rounds
from bench.workload import Workload

PROGRAM = """
import json, os, sys, time
from pathlib import Path

name, folder = json.loads(sys.argv[1])["preset"], Path(__file__).parent
with open(folder / "turns", "a") as turns:
    turns.write(name + "\\n")
if name == "fails":
    first = folder / "first"
    if os.environ["RANK"] == "0":
        first.with_suffix(".half").write_text(str(os.getpid()))
        first.with_suffix(".half").rename(first)
        time.sleep(5)
        (folder / "waited").touch()
    while not first.exists():
        time.sleep(0.01)
    sys.exit("there is no wind")
print("something that is not asked for")
print(json.dumps({"tokens_per_second": len(name)}))
"""
"""Notes whose turn it is, and measures nothing. Of the ranks of `fails` the first waits for the second."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program is, and finds itself."""
    (tmp_path / "sailing.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def contender(name: str, ranks: int = 1) -> Contender:
    return Contender(name, "sailing", Workload(name, "fp32", threads=1, ranks=ranks))


def test_contenders_take_turns(folder: Path) -> None:
    found = run_rounds([contender("sloop"), contender("yawl")], 2)
    assert (folder / "turns").read_text().split() == ["sloop", "yawl", "sloop", "yawl"]
    assert found == {"sloop": [{"tokens_per_second": 5}] * 2, "yawl": [{"tokens_per_second": 4}] * 2}


def test_each_is_run_by_its_interpreter(folder: Path) -> None:
    interpreter = folder / "python"
    interpreter.write_text('#!/bin/sh\nprintf \'{"tokens_per_second": 9, "told": "%s %s"}\' "$1" "$2"\n')
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    foreign = Contender("theirs", "sailing", Workload("sloop", "fp32"), str(interpreter))
    found = run_rounds([foreign, contender("sloop")], 1)
    assert found["theirs"] == [{"tokens_per_second": 9, "told": "-m sailing"}]
    assert (folder / "turns").read_text().split() == ["sloop"]


def test_a_failure_is_told_and_ends_the_others(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"fails failed \(1\):\n(.*\n)*there is no wind"):
        run_rounds([contender("fails", ranks=2), contender("yawl")], 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "first").read_text()), 0)
    assert not (folder / "waited").exists()
    assert "yawl" not in (folder / "turns").read_text()
