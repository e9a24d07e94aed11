"""Pools of worker processes on a real Ray: who is lost is named, and others take the place."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil
import pytest

from llmscale.config.problems import InputError
from llmscale.rlhf.workers.calls import Calls
from llmscale.rlhf.workers.lost import RayLost, WorkerFailed, WorkerLost
from llmscale.rlhf.workers.pool import Pool
from llmscale.rlhf.workers.pulse import own_servers
from llmscale.runtime.final import FinalFailure
from tests.rlhf.left_processes import assert_gone
from tests.rlhf.own_ray import pool_of, process_with_ray, run

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with process_with_ray() as made:
        yield made


def tell(pool: Pool, method: str, *arguments: Any) -> Calls:
    return pool.call("simple", method, [arguments] * pool.ask.processes)


def kill_soon(pid: int, number: signal.Signals, seconds: float = 0.3) -> None:
    threading.Timer(seconds, os.kill, (pid, number)).start()


def raised(calls: Calls, kind: type[Exception], seconds: float | None = None) -> str:
    try:
        calls.results(seconds)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def dies_and_comes_back() -> None:
    with pool_of(2) as (pool, listener):
        assert tell(pool, "add", 3).results() == [8, 8]
        before = tell(pool, "pid").results()
        # They have as much of the processors as whoever started the run.
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in before} == {os.nice(0)}
        # The other one waits for it in a collective, and raises an error of its own.
        under_way = tell(pool, "together", [0.0, 30.0])
        kill_soon(before[1], signal.SIGKILL)
        said = raised(under_way, WorkerLost)
        assert said.startswith(f"reference (pool some), rank 1 on {socket.gethostname()}: ")
        assert f"the process (pid {before[1]}) has ended during simple.together" in said
        assert not listener.waits
        pool.restart()
        after = tell(pool, "pid").results()
        assert not set(after) & set(before)
        assert_gone([before[0]])
        # What was in no file is forgotten; the process group is whole.
        assert tell(pool, "add", 1).results() == [6, 6]
        assert tell(pool, "together", [0.0, 0.0]).results() == [2.0, 2.0]


def test_a_pool_of_which_one_process_dies_is_started_again(process: ProcessPoolExecutor) -> None:
    run(process, dies_and_comes_back)


def is_late() -> None:
    with pool_of(2) as (pool, listener):
        pids = tell(pool, "pid").results()
        said = raised(tell(pool, "together", [0.0, 100.0]), WorkerLost, 3.0)
        assert "rank 1 on" in said and "simple.together is not done after 3 s on ranks 0, 1" in said
        assert f"this one (pid {pids[1]}) is in together" in said and "while others wait for it" in said
        assert "time.sleep(seconds[self.rank])" in said
        assert listener.beats >= 3 and not listener.waits
        pool.restart()
        pids = tell(pool, "pid").results()
        os.kill(pids[0], signal.SIGSTOP)
        said = raised(tell(pool, "together", [0.0, 0.0]), WorkerLost, 3.0)
        assert "rank 0 on" in said and f"this one (pid {pids[0]}) is stopped by a signal" in said
        pool.restart()
        assert_gone(pids[:2])
        assert tell(pool, "together", [0.0, 1.0]).results() == [2.0, 2.0]


def test_a_call_that_takes_too_long_ends_with_the_name_of_who_is_late(process: ProcessPoolExecutor) -> None:
    run(process, is_late)


def raises() -> None:
    with pool_of(2) as (pool, _):
        said = raised(tell(pool, "fail", "value", 1), WorkerFailed)
        assert "simple.fail on pool some, rank 1" in said and "something went wrong" in said
        pool.restart()
        assert raised(tell(pool, "fail", "input", 0), InputError) == "a.key = 3: is wrong"
        pool.restart()
        assert raised(tell(pool, "fail", "final", 1), FinalFailure) == "nothing helps"


def test_errors_of_a_role_come_back_as_what_they_are(process: ProcessPoolExecutor) -> None:
    run(process, raises)


def loses_ray() -> list[int]:
    with pool_of(1) as (pool, _):
        family = ours()
        servers = own_servers()
        assert sorted(server.name() for server in servers) == ["gcs_server", "raylet"]
        kill_soon(next(one.pid for one in servers if one.name() == "gcs_server"), signal.SIGKILL)
        began = time.monotonic()
        assert "the Ray of this run is gone" in raised(tell(pool, "sleep", [30.0]), RayLost)
        assert time.monotonic() - began < 20
    # Nothing waits for it when all is closed.
    assert time.monotonic() - began < 20
    return family


def test_a_ray_that_is_gone_is_noticed_at_once_and_leaves_nothing() -> None:
    with process_with_ray() as process:
        family = process.submit(loses_ray).result(timeout=300)
        os.kill(process.submit(os.getpid).result(), signal.SIGKILL)
    assert_gone(family)


def ours() -> list[int]:
    """What this process has started, but for two helpers of Ray, which end by themselves a minute later."""
    family = psutil.Process().children(recursive=True)
    return [one.pid for one in family if one.name() not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]


def opens() -> list[int]:
    with ExitStack() as kept:
        pool, _ = kept.enter_context(pool_of(2))
        tell(pool, "sleep", [1000.0, 1000.0])
        (stopped, _) = pool.team.pids
        os.kill(stopped, signal.SIGSTOP)
        kept.pop_all()
        return ours()


def test_nothing_of_a_ray_outlives_the_driver_that_has_started_it() -> None:
    with process_with_ray() as process:
        family = process.submit(opens).result(timeout=300)
        os.kill(process.submit(os.getpid).result(), signal.SIGKILL)
    assert_gone(family)
