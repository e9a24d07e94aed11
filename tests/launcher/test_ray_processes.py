"""Agents as Ray's actors hold them, without Ray: they die with their holder, and attempts do not overlap."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from llmscale_launcher.ray.actor import AgentStart, NodeActor
from llmscale_launcher.ray.fence import end_earlier, mark
from llmscale_launcher.ray.guard import guarded

AGENT = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGUSR1, lambda *_: (child.kill(), os._exit(75)))
threads, name = os.environ.get("OMP_NUM_THREADS"), os.environ["NAME"]
print("up", os.getpid(), child.pid, threads, name, os.getpgid(0), flush=True)
while True:
    time.sleep(600)
"""


def start_of(folder: Path, attempt: str = "first", code: str = AGENT) -> AgentStart:
    return AgentStart((sys.executable, "-c", code), {"NAME": "value"}, folder, attempt, folder / "log")


def wait_for_words(folder: Path) -> list[str]:
    """What the agent has said, once it has said it."""
    log = folder / "log"
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return log.read_text().split()


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for_death(*pids: int) -> None:
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, f"one of {pids} still lives"
        time.sleep(0.01)


def test_agent_gets_signals_and_its_exit_code_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    actor = NodeActor()
    codes: list[int] = []
    holder = threading.Thread(target=lambda: codes.append(actor.run(start_of(tmp_path))))
    holder.start()
    _, pid, child, threads, name, group = wait_for_words(tmp_path)
    assert (threads, name, group) == ("None", "value", pid)
    actor.send(signal.SIGUSR1)
    holder.join(20)
    assert codes == [75]
    wait_for_death(int(child))


def test_a_signal_that_comes_early_waits_for_the_agent(tmp_path: Path) -> None:
    actor = NodeActor()
    actor.send(signal.SIGKILL)
    assert actor.run(start_of(tmp_path)) == -signal.SIGKILL


def test_guarded_process_dies_with_its_parent(tmp_path: Path) -> None:
    holder = (
        "import os, subprocess, sys\n"
        "from llmscale_launcher.ray.guard import guarded\n"
        "command = [sys.executable, '-c', sys.argv[1]]\n"
        "subprocess.Popen(guarded(command, os.getpid()), stdout=open('log', 'w')).wait()"
    )
    environment = {**os.environ, "NAME": "value"}
    process = subprocess.Popen([sys.executable, "-c", holder, AGENT], cwd=tmp_path, env=environment)
    _, pid, child, *_ = wait_for_words(tmp_path)
    process.kill()
    process.wait()
    wait_for_death(int(pid))
    os.kill(int(child), signal.SIGKILL)


def test_guard_whose_parent_has_gone_starts_nothing(tmp_path: Path) -> None:
    """Between its start and its request the parent may die."""
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    done = subprocess.run(guarded(["touch", str(tmp_path / "started")], nobody.pid))
    assert done.returncode == 128 + signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_ends_what_an_earlier_one_has_left(tmp_path: Path) -> None:
    """Children of children too, but no other run's and nothing of its own."""
    families = {
        name: subprocess.Popen(
            ["/bin/sh", "-c", "sleep 600 & wait"],
            env={**os.environ, **mark(tmp_path / run, attempt)},
            start_new_session=True,
        )
        for name, run, attempt in (("old", "run", "1"), ("own", "run", "2"), ("other", "run2", "1"))
    }
    members = {
        name: [family.pid, *(child.pid for child in wait_for_children(family.pid))]
        for name, family in families.items()
    }
    try:
        assert set(end_earlier(tmp_path / "run", "2")) == set(members["old"])
        assert families["old"].wait(20) == -signal.SIGKILL
        assert not any(map(is_alive, members["old"]))
        assert all(map(is_alive, members["own"] + members["other"]))
        assert end_earlier(tmp_path / "run", "2") == []
    finally:
        for family in families.values():
            if family.poll() is None:
                os.killpg(family.pid, signal.SIGKILL)
                family.wait()


def wait_for_children(pid: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return children
