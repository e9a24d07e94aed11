"""A run's attempt as a job of the Ray of an allocation, followed at a job server that runs nothing."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.ray import follow
from llmscale_launcher.ray.follow import JobFollower
from llmscale_launcher.ray.jobs import JobServer

from tests.launcher.fake_ray import FakeRay, fake_ray


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.02)
    before = {number: signal.getsignal(number) for number in follow.STOP_SIGNALS}
    with fake_ray("2.60.0") as found:
        yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def follower(ray: FakeRay, folder: Path) -> JobFollower:
    made = JobFollower(folder, JobServer(ray.address))
    made.listen()
    return made


def wait_for_job(ray: FakeRay) -> dict[str, object]:
    deadline = time.monotonic() + 20
    while not ray.jobs:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return next(iter(ray.jobs.values()))


def test_logs_and_exit_code_come_through(
    ray: FakeRay, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        job = wait_for_job(ray)
        job["logs"] = "one\n"
        time.sleep(0.1)
        job |= {"logs": "one\ntwo\n", "status": "FAILED", "driver_exit_code": 75}

    acting = threading.Thread(target=act)
    acting.start()
    ended = follower(ray, tmp_path).run()
    acting.join()
    assert (ended.status, ended.exit_code) == ("FAILED", 75)
    assert capfd.readouterr().out.endswith("one\ntwo\n")
    assert str(wait_for_job(ray)["entrypoint"]).endswith(f"cluster ray-attempt --no-preflight {tmp_path}")


def test_a_signal_stops_the_job_once(ray: FakeRay, tmp_path: Path) -> None:
    def act() -> None:
        wait_for_job(ray)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)

    acting = threading.Thread(target=act)
    acting.start()
    ended = follower(ray, tmp_path).run()
    acting.join()
    assert (ended.status, ended.exit_code) == ("STOPPED", None)
    assert sum(asked.endswith("/stop") for asked in ray.asked) == 1


def test_waits_until_every_machine_has_joined(ray: FakeRay, tmp_path: Path) -> None:
    ray.machines = ["ALIVE", "DEAD"]
    threading.Timer(0.2, lambda: ray.machines.append("ALIVE")).start()
    began = time.monotonic()
    follower(ray, tmp_path).wait_for_machines(2)
    assert time.monotonic() - began >= 0.2


def test_machines_that_never_join(ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "JOIN_SECONDS", 0.1)
    with pytest.raises(SubmitError, match="it has 1 of 2 machines"):
        follower(ray, tmp_path).wait_for_machines(2)


def test_a_signal_ends_the_wait(ray: FakeRay, tmp_path: Path) -> None:
    waiting = follower(ray, tmp_path)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    waiting.wait_for_machines(2)
    assert waiting.asked_to_stop


def test_a_job_server_that_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(follow, "SILENT_SECONDS", 0.1)
    with fake_ray("2.60.0") as ray:
        made = JobFollower(tmp_path, JobServer(ray.address))
        monkeypatch.setattr(JobServer, "job", lambda self, id: ray.jobs.clear())
        with pytest.raises(SubmitError, match="has forgotten the job"):
            made.run()
