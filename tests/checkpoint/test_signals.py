"""Signals that come again and again while the last save goes on do no harm to it."""

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from tests.distributed.kills import Killer
from tests.distributed.trainings import DP2, Place, Run, assert_same_run

REPEATED = (signal.SIGTERM, signal.SIGUSR1)


def signal_again_and_again(run: Run, after_step: int, over: threading.Event) -> None:
    """The agent (this process) and its ranks get signals from `after_step` on until the run has ended."""
    chance = random.Random(after_step)
    while run.last_step() < after_step:
        if over.wait(0.005):
            return
    os.kill(os.getpid(), signal.SIGTERM)
    while not over.wait(0.003):
        with contextlib.suppress(ProcessLookupError):
            os.kill(Killer(run, []).rank_pid(chance.randrange(2)), chance.choice(REPEATED))
        if not run.events("preempted"):
            os.kill(os.getpid(), chance.choice(REPEATED))


@pytest.fixture
def deaf_afterwards():
    """What the agent puts back when it ends: a late signal must not end the test session."""
    before = {number: signal.signal(number, lambda *_: None) for number in REPEATED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("deaf_afterwards")
def test_signals_during_the_last_save(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    options = (*DP2, "train.steps=16")
    oracle, run = place.uninterrupted("oracle", *options), place.run("signalled")
    for after_step in (3, 8):
        over = threading.Event()
        thread = threading.Thread(target=signal_again_and_again, args=(run, after_step, over))
        thread.start()
        try:
            assert place.train("signalled", *options) == 75, run.rank_logs()
        finally:
            over.set()
            thread.join()
        assert run.last_step() == run.committed_steps()[-1] >= after_step
        assert not run.events("failed") and not run.saving()
    assert place.train("signalled", *options) == 0
    assert_same_run(run, oracle)
