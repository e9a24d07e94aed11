"""Real ranks that hang in different ways: the watchdog says so, and the right one is named."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from llmscale.config.cluster import WatchdogSection
from llmscale.control.culprit import find_culprit, suspects
from llmscale.control.messages import Report, decode_report, encode
from llmscale.control.watchdog import Straggler, Suspect, Watchdog
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server
from tests.runtime.faulty_ranks import FAULT_STEP, WatchedRanks, watched_ranks

OPTIONS = WatchdogSection(name_after=0.5)


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    prepare_environment(processes=1, threads=1)
    start_server(["tests.runtime.faulty_ranks"])


def suspect(watched: WatchedRanks, ranks: int, options: WatchdogSection = OPTIONS) -> Suspect:
    verdict, _ = watched.look_until(Watchdog(options, range(ranks)), 30)
    assert isinstance(verdict, Suspect), verdict
    return verdict


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("lock", "hold_the_lock"),
        ("sleep", "load_data"),
        ("skip", "agree"),
        ("other collective", "broadcast"),
    ],
)
def test_the_rank_that_holds_up_the_others_is_named(tmp_path: Path, fault: str, reason: str) -> None:
    with watched_ranks(tmp_path, 3, fault, victim=1) as watched:
        suspect(watched, 3)
        evidence = watched.evidence()
        culprit, why = find_culprit(evidence)
    assert culprit.rank == 1, evidence
    assert reason in why or any(reason in line for line in culprit.stack), (why, culprit.stack)
    assert reason in "".join(culprit.stack)
    assert all(found.step == FAULT_STEP - 1 for found in evidence)
    report = Report("agent", "host", "address", 0, 1, evidence=evidence)
    assert decode_report(encode(report)) == report


def test_a_stopped_rank_is_named_within_ten_seconds_by_default(tmp_path: Path) -> None:
    with watched_ranks(tmp_path, 3) as watched:
        watchdog = Watchdog(WatchdogSection(), range(3))
        watched.wait_for_step(1)
        assert watched.look_until(watchdog, 1.0)[0] is None
        watched.send(2, signal.SIGSTOP)
        verdict, seconds = watched.look_until(watchdog, 30)
        assert isinstance(verdict, Suspect) and seconds < 10
        culprit, why = find_culprit(watched.evidence())
        assert culprit.rank == 2 and why == "is stopped by a signal"
        watched.send(2, signal.SIGCONT)
        watched.wait_for_step(watched.step() + 2)


def test_of_two_ranks_in_different_collectives_both_are_named(tmp_path: Path) -> None:
    with watched_ranks(tmp_path, 2, "other collective", victim=1) as watched:
        suspect(watched, 2)
        found = suspects(watched.evidence())
    assert {one.rank for one, _ in found} == {0, 1}
    assert "broadcast" in {one.rank: why for one, why in found}[1]


class HalfStopped(threading.Thread):
    """Stops a process and lets it go on by turns, half of the time each."""

    def __init__(self, pid: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.pid, self.seconds = pid, seconds
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            os.kill(self.pid, signal.SIGSTOP)
            time.sleep(self.seconds)
            os.kill(self.pid, signal.SIGCONT)
            self.over.wait(self.seconds)


def test_a_rank_that_is_stopped_half_of_the_time_straggles(tmp_path: Path) -> None:
    with watched_ranks(tmp_path, 2, step_seconds=0.1) as watched:
        watchdog = Watchdog(WatchdogSection(), range(2))
        watched.wait_for_step(1)
        # Something to compare with; on a busy machine there may be real stragglers in it.
        watched.look_until(watchdog, 2.0)
        stopper = HalfStopped(watched.ranks[1].pid, 0.15)
        first_step = watched.step()
        stopper.start()
        verdict, _ = watched.look_until(watchdog, 30)
        steps = watched.step() - first_step
        stopper.over.set()
        stopper.join()
    assert isinstance(verdict, Straggler) and verdict.rank == 1, verdict
    assert steps <= 20
