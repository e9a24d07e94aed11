"""Whether a run is tried again, from exit codes and events alone."""

import random
import signal

import pytest

from llmscale.control.requeue import (
    Decision,
    EventStep,
    Rules,
    Tries,
    decide,
    signal_of,
    tries_without_progress,
)

RULES = Rules(requeue=True, max_requeues=100)
DIES = [("started", 0)]
FAILS = [("started", 0), ("failed", 7)]
DAMAGED = [("started", 5), ("saved", 9), ("failed", 9)]
STOPPED = [("started", 0), ("preempted", 0)]


@pytest.mark.parametrize(
    ("exit_code", "action", "final"),
    [
        (0, "finish", 0),
        (1, "finish", 1),
        (2, "finish", 2),
        (3, "finish", 3),
        (127, "finish", 127),
        (75, "requeue", 75),
        (-signal.SIGKILL, "requeue", 1),
        (128 + signal.SIGTERM, "requeue", 1),
    ],
)
def test_exit_codes(exit_code: int, action: str, final: int) -> None:
    decision = decide(exit_code, Tries(), 0, RULES)
    assert (decision.action, decision.exit_code) == (action, final)


@pytest.mark.parametrize(
    ("rules", "requeues", "reason"),
    [
        (Rules(False, 100), 0, "saved and asks to go on; cluster.requeue is false"),
        (Rules(True, 4), 4, "saved and asks to go on; cluster.max_requeues=4 is used up"),
        (Rules(True, 0), 0, "saved and asks to go on; cluster.max_requeues=0 is used up"),
    ],
)
def test_requeues_end(rules: Rules, requeues: int, reason: str) -> None:
    assert decide(75, Tries(), requeues, rules) == Decision("finish", 75, reason)


def test_last_requeue_is_used() -> None:
    assert decide(75, Tries(), 3, Rules(True, 4)).action == "requeue"


def test_cancelled_is_not_requeued() -> None:
    assert decide(75, Tries(), 0, RULES, cancelled=True).action == "finish"
    assert decide(-9, Tries(failures=3), 0, RULES, cancelled=True) == Decision(
        "finish", 1, "killed by SIGKILL; cancelled"
    )


def test_three_failures_stop() -> None:
    assert decide(-9, Tries(failures=2), 0, RULES).action == "requeue"
    assert decide(75, Tries(failures=3), 0, RULES) == Decision(
        "stop", 3, "3 attempts failed without a newer checkpoint"
    )


def test_many_early_preemptions_are_said() -> None:
    assert decide(75, Tries(stops=4), 0, RULES).reason == "saved and asks to go on"
    decision = decide(75, Tries(stops=5), 0, RULES)
    assert decision.action == "requeue"
    assert "last 5 attempts were stopped before they had saved" in decision.reason


@pytest.mark.parametrize(
    ("events", "tries"),
    [
        ([], Tries()),
        ([("submitted", None), *DIES], Tries(failures=1)),
        (FAILS * 3, Tries(failures=3)),
        ([*FAILS, *STOPPED, *DIES, *STOPPED, *FAILS], Tries(failures=3, stops=2)),
        ([*FAILS, *FAILS, ("submitted", None), *FAILS], Tries(failures=1)),
        ([*FAILS, ("started", 0), ("finished", 9), *DIES], Tries(failures=1)),
        ([*FAILS, ("started", 0), ("saved", 5), ("failed", 7)], Tries()),
        ([*FAILS, *STOPPED, ("started", 0), ("saved", 5), ("preempted", 5)], Tries()),
        # An event that a crash has swallowed: the next attempt begins further on.
        ([("started", 0), ("started", 5)], Tries(failures=1)),
        # A checkpoint that was committed and then found damaged, again and again.
        (
            [*[("started", 5), ("saved", 9), ("failed", 9)] * 2, ("started", 5), ("failed", 6)],
            Tries(failures=3),
        ),
        # Restarted in place: how the last one ended counts.
        ([("started", 0), ("failed", 3), ("restarted", 0), ("preempted", 4)], Tries(stops=1)),
        ([("started", 0), ("preempted", 4), ("started", 0), ("restarted", 0)], Tries(failures=1, stops=1)),
        # A lost node: the attempt asks to be requeued, and has failed; with fewer nodes it had gone on.
        ([("started", 0), ("node_lost", 3), ("failed", 3), ("preempted", 0)], Tries(failures=1)),
        ([("started", 0), ("node_lost", 3), ("restarted", 0), ("preempted", 9)], Tries(stops=1)),
        ([("started", 0), ("failed", 3), ("preempted", 0)], Tries(stops=1)),
        # What happens on nodes before an attempt starts is no attempt.
        ([*STOPPED, ("requeued", None), ("preflight_failed", None), *DIES], Tries(failures=1, stops=1)),
    ],
)
def test_tries_without_progress(events: list[EventStep], tries: Tries) -> None:
    assert tries_without_progress(events) == tries


def test_the_newest_checkpoint_speaks_for_the_last_attempt() -> None:
    assert tries_without_progress(FAILS * 2, committed=3) == Tries()
    assert tries_without_progress([("started", 3), ("saved", 9)], committed=3) == Tries(failures=1)


@pytest.mark.parametrize(
    ("code", "name"), [(0, None), (75, None), (-9, "SIGKILL"), (143, "SIGTERM"), (255, "signal 127")]
)
def test_signal_of(code: int, name: str | None) -> None:
    assert signal_of(code) == name


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_goes_nowhere_ends(seed: int) -> None:
    """Whatever mixture of crashes and preemptions comes: progress, or an end after three failures."""
    source = random.Random(seed)
    events: list[EventStep] = [("submitted", None)]
    committed = failures = 0
    for attempt in range(200):
        events.append(("started", committed))
        progress = source.random() < 0.1
        if progress:
            committed += 1
            if source.random() < 0.8:
                events.append(("saved", committed))
        asked = source.random() < 0.4
        if asked:
            events.append(("preempted", committed))
        failures = 0 if progress else failures + (not asked)
        decision = decide(75, tries_without_progress(events, committed), attempt, Rules(True, 200))
        assert (decision.action == "stop") is (failures >= 3)
        if decision.action == "stop":
            return
    raise AssertionError("200 attempts and no end")
