"""The local supervisor, with an agent whose attempts are written down beforehand."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from llmscale_launcher.backends.base import Earlier, JobRequest
from llmscale_launcher.backends.local import LocalBackend
from llmscale_launcher.job import write_job

from llmscale.config.load import write_resolved
from llmscale.config.schema import Config
from llmscale.run import supervise
from llmscale.run.standing import read_status
from llmscale.run.supervise import Supervisor
from llmscale.runtime.events import EventLog, read_events

FAKE_NODE = (sys.executable, str(Path(__file__).with_name("fake_node.py")))
Attempts = list[list[str]]
STOPPED = ["started", "preempted", "exit 75"]
DIES = ["started", "kill 9"]
DONE = ["started", "finished", "exit 0"]


def make_folder(
    root: Path, name: str = "run", attempts: list[list[str]] | None = None, **cluster: object
) -> Path:
    folder = root / name
    folder.mkdir()
    config = Config.model_validate({"run": {"name": name, "root": root}, "cluster": cluster})
    write_resolved(config, folder / "config.yaml")
    (folder / "plan.json").write_text(json.dumps(attempts or []))
    EventLog(folder).write("submitted")
    return folder


def supervisor(folder: Path, **more: object) -> Supervisor:
    return Supervisor(folder, command=FAKE_NODE, first_pause=0.001, **more)  # pyright: ignore


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in read_events(folder)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_tries_again_until_it_is_done(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, attempts=[STOPPED, DIES, DONE])
    assert supervisor(folder).run() == 0
    assert kinds(folder) == [
        "submitted",
        *["started", "preempted", "requeued"],
        *["started", "requeued"],
        *["started", "finished"],
    ]
    requeues = [event.details for event in read_events(folder) if event.kind == "requeued"]
    assert requeues == [
        {"requeue": 1, "exit_code": 75, "cause": "saved and asks to go on"},
        {"requeue": 2, "exit_code": -9, "cause": "killed by SIGKILL"},
    ]
    found = read_status(folder)
    assert (found.state, found.requeues) == ("done", 2)


def test_three_deaths_without_progress_end_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, attempts=[DIES] * 9)
    assert supervisor(folder).run() == 3
    assert kinds(folder).count("started") == 3
    last = read_events(folder)[-1]
    assert (last.kind, last.details["cause"]) == ("failed", "3 attempts failed without a newer checkpoint")
    assert read_status(folder).state == "failed"


def test_an_agent_that_dies_before_its_first_word_is_not_tried_for_ever(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, attempts=[["kill 9"]] * 9)
    assert supervisor(folder).run() == 3
    assert kinds(folder) == ["submitted", "requeued", "requeued", "failed"]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_verdicts_are_final_and_told(tmp_path: Path, code: int) -> None:
    folder = make_folder(tmp_path, attempts=[["started", f"exit {code}"]])
    assert supervisor(folder).run() == code
    assert kinds(folder) == ["submitted", "started", "failed"]
    assert f"exit code {code}" in read_events(folder)[-1].details["cause"]


def test_a_verdict_that_the_agent_has_told_is_not_told_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, attempts=[["started", "failed 7", "exit 1"]])
    assert supervisor(folder).run() == 1
    assert kinds(folder) == ["submitted", "started", "failed"]


def test_no_requeue_where_the_config_says_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, attempts=[STOPPED], requeue=False)
    assert supervisor(folder).run() == 75
    assert read_status(folder).state == "saved"
    folder = make_folder(tmp_path, "other", attempts=[STOPPED] * 3, max_requeues=1)
    assert supervisor(folder).run() == 75
    assert kinds(folder).count("requeued") == 1


def started(folder: Path, attempts: int) -> Callable[[], bool]:
    return lambda: kinds(folder).count("started") == attempts


def signal_when(condition: Callable[[], bool], number: signal.Signals) -> threading.Thread:
    def send() -> None:
        wait_for(condition)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_usr1_saves_and_is_requeued_term_ends_it(tmp_path: Path) -> None:
    attempt = ["started", "wait", "preempted", "exit 75"]
    folder = make_folder(tmp_path, attempts=[attempt] * 3)
    threads = [
        signal_when(started(folder, 1), signal.SIGUSR1),
        signal_when(started(folder, 2), signal.SIGTERM),
    ]
    assert supervisor(folder).run() == 75
    for thread in threads:
        thread.join()
    assert (folder / "signals").read_text().split() == ["SIGUSR1", "SIGTERM"]
    assert kinds(folder).count("started") == 2


def test_a_term_during_the_pause_ends_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, attempts=[STOPPED, DONE])
    watched = Supervisor(folder, command=FAKE_NODE, first_pause=30.0)
    thread = signal_when(lambda: "preempted" in kinds(folder), signal.SIGTERM)
    began = time.monotonic()
    assert watched.run() == 75
    thread.join()
    assert time.monotonic() - began < 10
    assert kinds(folder) == ["submitted", "started", "preempted"]


def test_waits_for_the_runs_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "WAIT_SECONDS", 0.01)
    first = make_folder(tmp_path, "first")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        write_job(first, LocalBackend().record(alive.pid, ()))
        folder = make_folder(tmp_path, "second", attempts=[DONE])
        finish = threading.Timer(0.3, lambda: EventLog(first).write("finished", 10))
        finish.start()
        assert supervisor(folder, finished=[first]).run() == 0
        finish.join()
        alive.communicate(b"\n")
    assert read_events(folder)[1].time > read_events(first)[-1].time


@pytest.mark.parametrize(("ending", "cause"), [("failed", "failed"), (None, "gone without a word")])
def test_a_run_whose_forerunner_failed_never_starts(tmp_path: Path, ending: str | None, cause: str) -> None:
    first = make_folder(tmp_path, "first")
    if ending:
        EventLog(first).write("failed", 3, cause="KeyError")
    folder = make_folder(tmp_path, "second", attempts=[DONE])
    assert supervisor(folder, finished=[first]).run() == 1
    assert kinds(folder) == ["submitted", "failed"]
    assert (
        read_events(folder)[-1].details["cause"]
        == f"first, which this run waits for, did not finish: {cause}"
    )
    folder = make_folder(tmp_path, "third", attempts=[DONE])
    assert supervisor(folder, ended=[first]).run() == 0


def test_cancelled_while_waiting(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, attempts=[DONE])
    (folder / ".cancelled").touch()
    assert supervisor(folder).run() == 1
    assert kinds(folder) == ["submitted", "failed"]
    assert read_status(folder).state == "cancelled"


def test_a_job_outlives_its_submitter_and_is_found_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    backend = LocalBackend()
    config = Config.model_validate(
        {"cluster": {"environment": {"GREETING": "it's here"}, "setup": ["echo set up", "exec sleep 60"]}}
    )
    request = JobRequest(config=config, folder=folder, after=(Earlier(tmp_path / "first", None),))
    assert (
        backend.script(request).splitlines()[-1].endswith(f"supervise {folder} --finished={tmp_path}/first")
    )
    record = backend.submit(request)
    write_job(folder, record)
    try:
        pid = int(record.id.split("@")[0])
        wait_for(lambda: b"GREETING=it's here\0" in Path(f"/proc/{pid}/environ").read_bytes())
        assert (folder / "logs" / "job.log").read_text() == "set up\n"
        assert os.getsid(pid) == pid != os.getsid(0)
        assert backend.states([record])[record.key].state == "running"
        assert read_status(folder).state == "pending"
        backend.cancel(record)
        wait_for(lambda: backend.states([record])[record.key].state == "ended")
    finally:
        os.waitpid(int(record.id.split("@")[0]), 0)
    assert read_status(folder).state == "gone"


def test_jobs_of_other_hosts_and_later_processes_are_not_taken_for_it(tmp_path: Path) -> None:
    backend = LocalBackend()
    mine = backend.record(os.getpid(), ())
    pid, created, host = mine.id.split("@")
    elsewhere = type(mine)("local", f"{pid}@{created}@elsewhere", None, 0.0)
    earlier = type(mine)("local", f"{pid}@{float(created) - 60}@{host}", None, 0.0)
    states = backend.states([mine, elsewhere, earlier])
    assert [states[job.key].state for job in (mine, elsewhere, earlier)] == ["running", "unknown", "ended"]


def test_several_nodes_are_refused() -> None:
    config = Config.model_validate({"cluster": {"nodes": 2}})
    assert [problem.key for problem in LocalBackend().check(config)] == ["cluster.nodes"]
    assert LocalBackend().check(Config()) == []
