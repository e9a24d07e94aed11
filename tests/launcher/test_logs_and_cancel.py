"""`logs` over files that come and grow, `cancel` by way of a scheduler that only remembers."""

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import typer
from llmscale_launcher.backends.local import LocalBackend

from llmscale.commands import cancel as cancel_module
from llmscale.commands import logs as logs_module
from llmscale.commands.cancel import cancel
from llmscale.commands.logs import LogFiles, logs
from llmscale.config.problems import InputError
from llmscale.run.standing import read_status
from llmscale.runtime.events import EventLog
from tests.launcher.fake_scheduler import FakeScheduler
from tests.launcher.standing_runs import commit, make_run, slurm_job

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    fake = FakeScheduler(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_logs_gain_lines_and_files(tmp_path: Path) -> None:
    seen: list[str] = []
    (tmp_path / "rank-0.log").write_text("one\ntwo\nthree\nhalf")
    files = LogFiles(tmp_path, ["rank-*.log"], 2, seen.append)
    files.print_new()
    assert seen == ["[0] two", "[0] three"]
    with (tmp_path / "rank-0.log").open("a") as file:
        file.write(" a line\n")
    (tmp_path / "rank-10.log").write_text("ten\n" * 3)
    (tmp_path / "rank-9.log").write_text("nine\n")
    seen.clear()
    files.print_new()
    assert seen == ["[0] half a line", "[9] nine", *["[10] ten"] * 3]
    seen.clear()
    files.print_new()
    assert seen == []


def test_follow_goes_on_over_a_requeue_to_the_end(
    tmp_path: Path,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(logs_module, "FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(logs_module, "ASK_SECONDS", 0.02)
    root = tmp_path / "runs"
    folder = make_run(root, events=["submitted", "started"], step=3, job=slurm_job("5"))
    (folder / "logs").mkdir()
    scheduler.set_state("5", "RUNNING")

    def questions() -> int:
        return len(scheduler.calls("squeue"))

    def live() -> None:
        for state, line in (("RUNNING", "first"), ("PENDING", "between"), ("RUNNING", "second")):
            scheduler.set_state("5", state, restarts=1)
            with (folder / "logs" / "job.log").open("a") as file:
                file.write(line + "\n")
            asked = questions()
            wait_for(lambda asked=asked: questions() > asked + 1)
        (folder / "logs" / "rank-0.log").write_text("bye\n")
        EventLog(folder).write("finished", 100)

    other = threading.Thread(target=live)
    other.start()
    logs("run", follow=True, rank=0, job=True, lines=20, root=root)
    other.join()
    lines = ["[job] first", "[job] between", "[job] second", "[0] bye"]
    assert capsys.readouterr().out.splitlines() == lines


def test_no_logs_yet(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(InputError, match="has no rank-3.log yet"):
        logs("run", follow=False, rank=3, job=False, lines=20, root=tmp_path)


def cancelled(root: Path, name: str, wait: float = 0, kill: bool = False) -> int:
    with pytest.raises(typer.Exit) as end:
        cancel(name, root, wait, kill)
    return end.value.exit_code


def test_a_job_that_runs_is_asked_to_save(
    tmp_path: Path,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(cancel_module, "ASK_SECONDS", 0.02)
    root = tmp_path / "runs"
    folder = make_run(root, events=["submitted", "started"], step=3, job=slurm_job("5"))
    commit(folder, 3)
    scheduler.set_state("5", "RUNNING")

    def leave() -> None:
        wait_for(lambda: ["--batch", "--signal=USR1", "5"] in scheduler.calls("scancel"))
        EventLog(folder).write("preempted", 3)
        scheduler.set_state("5", "FAILED", exit_code=75)

    other = threading.Thread(target=leave)
    other.start()
    assert cancelled(root, "run", wait=20) == 0
    other.join()
    assert ["update", "jobid=5", "requeue=0"] in scheduler.calls("scontrol")
    assert read_status(folder).state == "cancelled"
    assert "run stopped" in capsys.readouterr().out


def test_a_job_that_does_not_leave(
    tmp_path: Path,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(cancel_module, "KILL_SECONDS", 0.0)
    root = tmp_path / "runs"
    make_run(root, events=["submitted", "started"], step=3, job=slurm_job("5"))
    scheduler.set_state("5", "RUNNING")
    assert cancelled(root, "run") == 1
    assert scheduler.calls("scancel") == [["--batch", "--signal=USR1", "5"]]
    assert "run was asked to stop and still is stopping" in capsys.readouterr().err
    assert cancelled(root, "run", kill=True) == 1
    assert scheduler.calls("scancel")[-1] == ["5"]


def test_stages_that_wait_go_before_the_one_that_runs(tmp_path: Path, scheduler: FakeScheduler) -> None:
    root = tmp_path / "runs"
    stages = []
    for number, state in (("5", "RUNNING"), ("6", "PENDING"), ("7", "PENDING")):
        folder = make_run(root, f"both-{number}", ["submitted"], job=slurm_job(number))
        scheduler.set_state(number, state)
        stages.append({"name": number, "run": str(folder), "job": number})
    (root / "both").mkdir()
    (root / "both" / "pipeline.json").write_text(json.dumps({"name": "both", "stages": stages}))
    assert cancelled(root, "both") == 1
    assert scheduler.calls("scancel") == [["7"], ["6"], ["--batch", "--signal=USR1", "5"]]


def test_a_scheduler_that_refuses_is_heard(tmp_path: Path, scheduler: FakeScheduler, capsys: Capture) -> None:
    root = tmp_path / "runs"
    make_run(root, events=["submitted"], job=slurm_job("5"))
    scheduler.set_state("5", "PENDING")
    scheduler.refuse("scancel", "scancel: error: Kill job error on job id 5: Access/permission denied")
    assert cancelled(root, "run") == 1
    assert "Access/permission denied" in capsys.readouterr().err


def test_what_is_over_cannot_be_cancelled(tmp_path: Path, scheduler: FakeScheduler) -> None:
    make_run(tmp_path / "runs", events=["submitted", "started", "finished"], job=slurm_job("5"))
    with pytest.raises(InputError, match="does not run; it is done"):
        cancel("run", tmp_path / "runs", 0, False)


def test_an_agent_that_its_supervisor_left_alone(tmp_path: Path, monkeypatch: Patch) -> None:
    """The supervisor was killed, the agent trains on: it is seen, and asked itself."""
    monkeypatch.setattr(cancel_module, "ASK_SECONDS", 0.02)
    with subprocess.Popen(["/bin/true"]) as supervisor:
        job = LocalBackend().record(supervisor.pid, ())
    folder = make_run(tmp_path, events=["submitted", "started"], job=job)
    with subprocess.Popen(["/bin/sleep", "60"]) as agent:
        record = {"pid": agent.pid, "created": psutil.Process(agent.pid).create_time()}
        (folder / "agent.json").write_text(json.dumps({**record, "host": socket.gethostname()}))
        assert read_status(folder).state == "starting"
        reaper = threading.Thread(target=agent.wait)
        reaper.start()
        assert cancelled(tmp_path, "run", wait=20) == 0
        reaper.join()
        assert agent.returncode == -signal.SIGTERM
    assert read_status(folder).state == "cancelled"
