"""The agent against ranks that finish, die, crash, refuse and are asked to stop. No collectives: what
is under test is processes, signals and exit codes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from llmscale.control.coordinator import Policy
from llmscale.runtime.agent import Agent, Job, Watcher
from llmscale.runtime.events import Event, read_events
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server
from tests.runtime import agent_entries


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    prepare_environment(processes=1, threads=1)
    start_server(["tests.runtime.agent_entries"])


def run(
    entry: Callable[[Path], int], folder: Path, processes: int = 2, **options: int
) -> tuple[int, list[str]]:
    listener = Listener()
    job = Job(
        run_folder=folder,
        entry=entry,
        arguments=(folder,),
        policy=Policy(1, frozenset({1}), processes, **{"max_restarts": 3, **options}),
        committed_step=lambda: agent_entries.committed_step(folder),
    )
    return Agent(job, listener).run_job(), listener.said


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in read_events(folder)]


def failures(folder: Path) -> list[Event]:
    return [event for event in read_events(folder) if event.kind == "failed"]


def when(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Do `action` once `condition` holds."""

    def wait() -> None:
        while not condition():
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def all_alive(folder: Path, processes: int) -> bool:
    return len(list(folder.glob("alive-*"))) == processes


def test_ranks_know_their_place_and_the_run_finishes(tmp_path: Path) -> None:
    code, _ = run(agent_entries.finish, tmp_path, processes=3)
    assert code == 0
    assert kinds(tmp_path) == ["started", "finished"]
    places = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(3)]
    assert [place["rank"] for place in places] == [0, 1, 2]
    assert {place["world_size"] for place in places} == {3}
    assert {place["master_address"] for place in places} == {"127.0.0.1"}
    assert len({place["master_port"] for place in places}) == 1


@pytest.mark.parametrize("seed", range(6))
def test_dead_rank_is_named_and_the_ranks_start_again(tmp_path: Path, seed: int) -> None:
    (tmp_path / "seed").write_text(str(seed))
    code, said = run(agent_entries.kill_once, tmp_path, processes=3)
    victim = json.loads((tmp_path / "victim").read_text())
    assert code == 0
    assert kinds(tmp_path) == ["started", "failed", "restarted", "finished"]
    failed = failures(tmp_path)[0]
    assert failed.details["rank"] == victim["rank"]
    expected = "exit code 0" if "exit" in victim["how"] else f"killed by {victim['how']}"
    assert failed.details["cause"].startswith(expected)
    assert "about to go" in failed.details["log_lines"]
    assert failed.time - float((tmp_path / "died").read_text()) < 1
    assert any(f"rank {victim['rank']} on " in text for text in said)


def test_deterministic_crash_stops_after_max_restarts(tmp_path: Path) -> None:
    code, _ = run(agent_entries.crash, tmp_path, max_restarts=3)
    assert code == 3
    assert (tmp_path / "starts").read_text().count("1") == 4
    assert [event.details["rank"] for event in failures(tmp_path)] == [1, 1, 1, 1]
    assert {event.details["cause"] for event in failures(tmp_path)} == {"ValueError: no such token: 9000"}


def test_progress_renews_the_restarts(tmp_path: Path) -> None:
    code, _ = run(agent_entries.crash_after_progress, tmp_path, processes=1, max_restarts=1)
    assert code == 0
    assert len(failures(tmp_path)) == 5


def test_without_restarts_a_crash_is_a_failure(tmp_path: Path) -> None:
    assert run(agent_entries.crash, tmp_path, max_restarts=0)[0] == 1


def test_verdict_of_a_rank_is_final(tmp_path: Path) -> None:
    code, _ = run(agent_entries.refuse, tmp_path)
    assert code == 2
    assert kinds(tmp_path) == ["started", "failed"]


def test_what_a_restart_would_only_repeat_is_not_restarted(tmp_path: Path) -> None:
    code, said = run(agent_entries.give_up, tmp_path)
    assert code == 1
    assert kinds(tmp_path) == ["started", "failed"]
    assert any("the loss is nan" in text for text in said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_signal_saves_and_asks_for_a_requeue(tmp_path: Path, number: signal.Signals) -> None:
    when(lambda: all_alive(tmp_path, 2), lambda: os.kill(os.getpid(), number))
    code, _ = run(agent_entries.train_slowly, tmp_path)
    assert code == 75
    assert kinds(tmp_path) == ["started", "preempted"]
    assert agent_entries.committed_step(tmp_path) == 7


def test_signal_during_start_is_not_lost(tmp_path: Path) -> None:
    when(lambda: bool(kinds(tmp_path)), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(agent_entries.train_slowly, tmp_path, processes=4)[0] == 75


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        (tmp_path / "second").write_text(repr(time.time()))
        os.kill(os.getpid(), signal.SIGINT)

    when(lambda: all_alive(tmp_path, 2), interrupt_twice)
    code, _ = run(agent_entries.ignore_signals, tmp_path)
    assert code == 1
    assert time.time() - float((tmp_path / "second").read_text()) < 1
    pids = [int(path.read_text()) for path in tmp_path.glob("alive-*")]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    when(lambda: (tmp_path / "metrics.jsonl").exists(), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(agent_entries.train, tmp_path)[0] == 75
    saved = agent_entries.committed_step(tmp_path)
    assert saved is not None and 0 < saved < agent_entries.STEPS
    assert run(agent_entries.train, tmp_path)[0] == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, agent_entries.STEPS + 1))


AGENT = (
    "import sys, pathlib, agent_entries\n"
    "from llmscale.control.coordinator import Policy\n"
    "from llmscale.runtime.agent import Agent, Job, Watcher\n"
    "from llmscale.runtime.ranks import start_server\n"
    "start_server(['agent_entries'])\n"
    "folder, entry = pathlib.Path(sys.argv[1]), getattr(agent_entries, sys.argv[2])\n"
    "job = Job(folder, entry, (folder,), Policy(1, frozenset({1}), 2, 3), lambda: None)\n"
    "sys.exit(Agent(job, Watcher()).run_job())\n"
)


@contextmanager
def agent_elsewhere(folder: Path, entry: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent in a process group of its own, with both of its ranks at work."""
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(folder), entry],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not all_alive(folder, 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all_alive(folder, 2)
        yield agent
    finally:
        agent.kill()
        agent.wait()


def test_ranks_die_with_the_agent(tmp_path: Path) -> None:
    with agent_elsewhere(tmp_path, "ignore_signals") as agent:
        pids = [int(path.read_text()) for path in tmp_path.glob("alive-*")]
        agent.kill()
        agent.wait()
        deadline = time.monotonic() + 5
        while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_process_group_saves_too(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C on a terminal and schedulers reach agent, server and ranks at once."""
    with agent_elsewhere(tmp_path, "train_slowly") as agent:
        os.killpg(agent.pid, number)
        assert agent.wait(20) == 75
    assert kinds(tmp_path) == ["started", "preempted"]


def test_nothing_listens_off_loopback(tmp_path: Path) -> None:
    addresses: set[str] = set()

    def look() -> None:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        for process in family:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    addresses.add(connection.laddr.ip)
        os.kill(os.getpid(), signal.SIGTERM)

    when(lambda: all_alive(tmp_path, 2), look)
    run(agent_entries.train_slowly, tmp_path)
    assert addresses == {"127.0.0.1"}
