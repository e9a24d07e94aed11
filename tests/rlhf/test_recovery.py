"""What is done again when a pool is lost, and what is not; no Ray needed."""

import subprocess
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from llmscale.rlhf.workers.lost import RayLost, WorkerLost
from llmscale.rlhf.workers.pool import Pool
from llmscale.rlhf.workers.pulse import Pulse
from llmscale.rlhf.workers.recovery import Recovery
from llmscale.runtime.describe import describe_event
from llmscale.runtime.events import EventLog, read_events
from llmscale.runtime.hooks import Hook


class Fake:
    """In place of a pool: is lost so often while it is restarted."""

    def __init__(self, name: str, *roles: str, losses: int = 0) -> None:
        self.name = name
        self.roles = roles
        self.losses = losses
        self.restarts = 0

    def lost(self) -> WorkerLost:
        return WorkerLost(self.name, self.roles, 1, "node3", "the process (pid 7) has ended during a call")

    def restart(self) -> None:
        self.restarts += 1
        if self.losses:
            self.losses -= 1
            raise self.lost()


class Phases(Hook):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_phase(self, phase: Any) -> None:
        self.heard.append(phase)


def failing(pool: Fake, times: int) -> Any:
    """Work that loses the pool so often before it is done."""
    left = [times]

    def work() -> str:
        if left[0]:
            left[0] -= 1
            raise pool.lost()
        return "done"

    return work


def recovery(folder: Path, pool: Fake, most: int = 2) -> tuple[Recovery, list[str], Phases]:
    forgotten: list[str] = []
    phases = Phases()
    pools = {pool.name: cast(Pool, pool)}
    return (
        Recovery(pools, EventLog(folder), phases, most, lambda: forgotten.append("writers")),
        forgotten,
        phases,
    )


def test_a_pool_of_what_is_in_files_is_restarted_and_the_work_repeated(tmp_path: Path) -> None:
    pool = Fake("helpers", "reference", "reward")
    mended, forgotten, phases = recovery(tmp_path, pool)
    assert mended.repeated(4, failing(pool, 2)) == "done"
    assert pool.restarts == 2 and not forgotten
    assert phases.heard == ["starting", "training"] * 2
    events = read_events(tmp_path)
    assert [(one.kind, one.step) for one in events] == [("worker_lost", 4), ("pool_restarted", 4)] * 2
    told = [describe_event(one.kind, one.step, one.details) for one in events[:2]]
    assert told[0] == (
        "worker lost after step 4: reference and reward (pool helpers), rank 1 on node3: "
        "the process (pid 7) has ended during a call"
    )
    assert told[1].startswith("restarted pool helpers (reference, reward) in ")


def test_writers_that_were_restarted_have_no_weights(tmp_path: Path) -> None:
    pool = Fake("writers", "rollout")
    mended, forgotten, _ = recovery(tmp_path, pool)
    assert mended.repeated(0, failing(pool, 1)) == "done" and forgotten == ["writers"]


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_a_pool_with_what_learns_is_not_restarted_alone(tmp_path: Path, role: str) -> None:
    pool = Fake("train", role, "reference")
    mended, _, _ = recovery(tmp_path, pool)
    with pytest.raises(WorkerLost, match=rf"{role} and reference \(pool train\), rank 1 on node3: "):
        mended.repeated(0, failing(pool, 1))
    assert pool.restarts == 0


def test_restarts_in_a_row_without_a_step_are_counted(tmp_path: Path) -> None:
    pool = Fake("helpers", "reference")
    mended, _, _ = recovery(tmp_path, pool)
    for step in range(5):
        assert mended.repeated(step, failing(pool, 2)) == "done"
        mended.step_done()
    with pytest.raises(WorkerLost):
        mended.repeated(5, failing(pool, 3))
    assert pool.restarts == 12


def test_a_pool_that_is_lost_while_it_starts_counts_too(tmp_path: Path) -> None:
    pool = Fake("writers", "rollout", losses=1)
    mended, forgotten, _ = recovery(tmp_path, pool)
    assert mended.repeated(0, failing(pool, 1)) == "done"
    assert pool.restarts == 2 and forgotten == ["writers"]
    with pytest.raises(WorkerLost):
        mended.repeated(0, failing(pool, 1))


def test_a_pulse_is_told_and_ends_with_the_servers() -> None:
    heard: list[bool] = []
    server = subprocess.Popen(["sleep", "1000"])
    pulse = Pulse([psutil.Process(server.pid)])
    pulse.listener = heard.append
    with pulse.waiting():
        pulse.beat()
    assert heard == [True, True, False] and not pulse.ray_is_gone
    server.kill()
    server.wait()
    with pytest.raises(RayLost, match="the Ray of this run is gone"), pulse.waiting():
        raise AssertionError("the wait does not begin")
    assert pulse.ray_is_gone
