"""The driver of an attempt without a Ray: threads in the place of actors, a script as the coordinator."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from llmscale_launcher.ray import attempt as attempt_module
from llmscale_launcher.ray.actor import AgentStart, NodeActor
from llmscale_launcher.ray.attempt import Attempt, Commands
from llmscale_launcher.ray.nodes import AgentEnd
from llmscale_launcher.ray.placement import Ask, Machine

from llmscale.config.load import write_resolved
from llmscale.config.schema import Config

COORDINATOR = """
import os, pathlib, signal, sys, time
folder, options = pathlib.Path(sys.argv[1]), dict(word[2:].split("=", 1) for word in sys.argv[2:])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(options["written-to"]).write_text("127.0.0.1:1\\n")
while not (folder / "verdict").exists():
    time.sleep(0.01)
verdict = int((folder / "verdict").read_text())
sys.exit(verdict) if verdict >= 0 else os.kill(os.getpid(), -verdict)
"""
"""Ends as the file `verdict` says, and so does an agent; a signal has the agents say 75."""

AGENT = """
import contextlib, os, pathlib, signal, sys, time
folder, node = pathlib.Path(sys.argv[1]), os.environ["LLMSCALE_NODE"]
assert os.environ["LLMSCALE_COORDINATOR"] == "127.0.0.1:1"
def save(*_):
    with contextlib.suppress(FileNotFoundError):  # another agent was quicker
        (folder / "saved").replace(folder / "verdict")
signal.signal(signal.SIGTERM, save)
(folder / f"node-{node}-{os.getpid()}").touch()
while not (folder / "verdict").exists():
    time.sleep(0.01)
sys.exit(int((folder / "verdict").read_text()))
"""

ADDRESS = {"pretrain": None, "rlhf": "127.0.0.1:3"}
"""What RAY_ADDRESS is in the agent's environment."""

PREFLIGHT = """
import os, pathlib, sys
assert os.environ["LLMSCALE_RENDEZVOUS"] == "127.0.0.1:2" and "LLMSCALE_COORDINATOR" not in os.environ
folder, node = pathlib.Path(sys.argv[1]), os.environ["LLMSCALE_NODE"]
(folder / f"looked-at-{node}").touch()
sys.exit(1 if (folder / "bad").exists() else 0)
"""


class ThreadNodes:
    """What `RayNodes` offers, with `room` machines."""

    def __init__(self, ask: Ask, room: int) -> None:
        self.ask = ask
        self.room = room
        self.bundles = range(0)
        self.actors: dict[int, NodeActor] = {}
        self.ends: list[AgentEnd] = []

    def connect(self) -> None:
        """There is nothing to connect to."""

    def own_address(self) -> str:
        return "127.0.0.1"

    def ray_address(self) -> str:
        return "127.0.0.1:3"

    def reserve(self, nodes: int) -> None:
        self.bundles = range(nodes)

    def is_reserved(self, seconds: float) -> bool:
        time.sleep(0.01)
        return len(self.bundles) <= self.room

    def machines(self) -> list[Machine]:
        return [Machine(str(number), f"10.0.0.{number}", 1, 0) for number in range(self.room)]

    def unoccupied(self) -> list[Machine]:
        return self.machines()[len(self.actors) :]

    @property
    def without_agent(self) -> list[int]:
        return [node for node in range(self.ask.nodes) if node not in self.actors]

    @property
    def have_agents(self) -> bool:
        return bool(self.actors)

    def placed(self) -> list[int]:
        return list(self.actors)

    def first_endpoint(self) -> str:
        return "127.0.0.1:2"

    def start(self, node: int, start: AgentStart) -> None:
        actor = self.actors[node] = NodeActor()

        def run() -> None:
            code = actor.run(start)
            self.ends.append(AgentEnd(node, code, f"exit code {code}"))

        threading.Thread(target=run).start()

    def start_on(self, machine: str, node: int, start: AgentStart) -> None:
        self.start(node, start)

    def poll(self, seconds: float) -> list[AgentEnd]:
        time.sleep(0.01)
        ends, self.ends = self.ends, []
        for end in ends:
            del self.actors[end.node]
        return ends

    def send(self, number: int) -> None:
        for actor in self.actors.values():
            actor.send(number)

    def close(self) -> None:
        self.send(signal.SIGKILL)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No long waits, and the signal handlers of before."""
    for name in ("AGAIN_SECONDS", "ALONE_SECONDS", "ALL_NODES_SECONDS", "TRY_SECONDS"):
        monkeypatch.setattr(attempt_module, name, 0.2)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def attempt(
    folder: Path, room: int = 2, ran_before: bool = False, task: str = "pretrain", **cluster: object
) -> Attempt:
    (folder / "logs").mkdir()
    section = {"kind": "ray", "nodes": 2, "preflight": False, **cluster}
    write_resolved(Config.model_validate({"task": task, "cluster": section}), folder / "config.yaml")
    commands = Commands(*((sys.executable, "-c", script) for script in (COORDINATOR, AGENT, PREFLIGHT)))
    made = Attempt(folder, ran_before, commands=commands)
    made.nodes = ThreadNodes(made.nodes.ask, room)  # pyright: ignore[reportAttributeAccessIssue]
    return made


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def wait_for_agents(folder: Path, count: int) -> list[int]:
    """Process ids of the agents that have started, oldest first, once there are `count`."""
    deadline = time.monotonic() + 20
    while len(found := sorted(folder.glob("node-*-*"), key=lambda path: path.stat().st_mtime_ns)) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return [int(path.name.rpartition("-")[2]) for path in found]


def end(folder: Path, count: int, code: int) -> None:
    """The coordinator's verdict, once `count` agents have started."""
    wait_for_agents(folder, count)
    (folder / "written").write_text(str(code))
    (folder / "written").replace(folder / "verdict")


@pytest.mark.parametrize("code", [0, 1, 3, 75])
def test_verdict_is_the_coordinators(tmp_path: Path, code: int) -> None:
    act = meanwhile(lambda: end(tmp_path, 2, code))
    assert attempt(tmp_path).run() == code
    act.join()


@pytest.mark.parametrize("task", ["pretrain", "rlhf"])
def test_only_a_driver_is_told_where_its_ray_is(tmp_path: Path, task: str) -> None:
    """It is alone, and no node is looked at before: workers may be on any."""
    acting = meanwhile(lambda: end(tmp_path, 1, 0))
    driving = attempt(tmp_path, room=3, task=task, nodes=1, preflight=task == "rlhf")
    node = ("-c", f"import os; assert os.environ.get('RAY_ADDRESS') == {ADDRESS[task]!r}\n{AGENT}")
    driving.commands = replace(driving.commands, node=(sys.executable, *node))
    assert driving.run() == 0
    acting.join()
    assert not list(tmp_path.glob("looked-at-*")) and len(list(tmp_path.glob("node-*"))) == 1


def test_lost_agent_is_replaced(tmp_path: Path) -> None:
    def act() -> None:
        os.kill(wait_for_agents(tmp_path, 2)[1], signal.SIGKILL)
        end(tmp_path, 3, 0)

    acting = meanwhile(act)
    assert attempt(tmp_path).run() == 0
    acting.join()


def test_signal_is_passed_on_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "saved").write_text("75")

    def act() -> None:
        wait_for_agents(tmp_path, 2)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)

    acting = meanwhile(act)
    assert attempt(tmp_path).run() == 75
    acting.join()
    assert capfd.readouterr().out.count("SIGTERM: asks the agents") == 1


def test_agents_that_all_leave_by_themselves_end_the_attempt(tmp_path: Path) -> None:
    made = attempt(tmp_path)
    made.commands = replace(made.commands, node=(sys.executable, "-c", "raise SystemExit(2)"))
    assert made.run() == 2


def test_coordinator_that_does_not_start_ends_the_attempt(tmp_path: Path) -> None:
    made = attempt(tmp_path)
    made.commands = replace(made.commands, coordinate=(sys.executable, "-c", "raise SystemExit(2)"))
    assert made.run() == 2
    assert not list(tmp_path.glob("node-*"))


def test_killed_coordinator_ends_the_attempt(tmp_path: Path) -> None:
    made = attempt(tmp_path)
    act = meanwhile(lambda: end(tmp_path, 2, -9))
    assert made.run() == 128 + 9
    act.join()


def test_without_room(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ray = {"ray": {"wait_seconds": 0.5}}
    assert attempt(tmp_path, room=1, **ray).run() == 2
    assert "found no place in time. asked for: 2 nodes" in capfd.readouterr().out


def test_without_room_after_it_has_run(tmp_path: Path) -> None:
    assert attempt(tmp_path, room=1, ran_before=True, ray={"wait_seconds": 0.5}).run() == 75


def test_elastic_run_begins_with_what_there_is_and_grows(tmp_path: Path) -> None:
    made = attempt(tmp_path, room=1, elastic=1)

    def act() -> None:
        wait_for_agents(tmp_path, 1)
        made.nodes.room = 2  # pyright: ignore[reportAttributeAccessIssue]
        end(tmp_path, 2, 0)

    acting = meanwhile(act)
    assert made.run() == 0
    acting.join()


def test_setup_environment_and_directory_reach_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = attempt(tmp_path, environment={"NAME": "it's"}, setup=["export MORE=$NAME-more"], nodes=1)
    seen = (
        "import os; print(os.getcwd(), os.environ['MORE'], os.environ['LLMSCALE_JOB']); raise SystemExit(2)"
    )
    made.commands = replace(made.commands, node=(sys.executable, "-c", seen))
    assert made.run() == 2
    assert (tmp_path / "logs" / "node-0.log").read_text() == f"{tmp_path} it's-more {made.name}\n"


def test_preflight_looks_at_every_node_before_training(tmp_path: Path) -> None:
    act = meanwhile(lambda: end(tmp_path, 2, 0))
    assert attempt(tmp_path, preflight=True).run() == 0
    act.join()
    assert len(list(tmp_path.glob("looked-at-*"))) == 2


def test_nothing_is_trained_on_nodes_that_are_not_fit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").touch()
    assert attempt(tmp_path, preflight=True).run() == 1
    assert not list(tmp_path.glob("node-*"))
    assert "preflight.json" in capfd.readouterr().out
