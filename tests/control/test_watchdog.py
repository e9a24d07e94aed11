"""The watchdog over synthetic traces: no alarm without a reason, every hang and straggler found in time."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from llmscale.config.cluster import WatchdogSection
from llmscale.control.watchdog import Beat, Hang, Phase, Straggler, Suspect, Watchdog

LOOK_SECONDS = 0.25
SIGMA = 0.25


@dataclass
class Trace:
    """A run in lockstep: every rank works for its own time and waits for the slowest."""

    seed: int
    step_seconds: float
    ranks: int = 4
    slow_rank: int | None = None
    slow_from: int = 0
    hang_at: int | None = None
    validate_every: int = 50
    save_every: int = 80
    now: float = 0.0
    step: int = 0
    busy: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.busy = dict.fromkeys(range(self.ranks), 0.0)

    def looks(self, steps: int) -> Iterator[tuple[float, dict[int, Beat]]]:
        """What an observer sees every LOOK_SECONDS."""
        next_look = 0.0
        for phase, seconds, works in self._spans(steps):
            end = self.now + seconds
            while next_look < end:
                done = next_look - self.now
                beats = {
                    rank: Beat(phase, self.step, 0, 0.0, self.busy[rank] + min(done, works[rank]))
                    for rank in self.busy
                }
                yield next_look, beats
                next_look += LOOK_SECONDS
            self.now = end
            for rank, work in works.items():
                self.busy[rank] += work

    def _spans(self, steps: int) -> Iterator[tuple[Phase, float, dict[int, float]]]:
        """Phase, length, and how long each rank works in it; the state changes at the end of each."""
        everyone = self.busy
        yield "starting", 20.0, dict.fromkeys(everyone, 20.0)
        yield "training", 10 * self.step_seconds, dict.fromkeys(everyone, 9 * self.step_seconds)
        self.step += 1
        while self.step < steps:
            if self.step == self.hang_at:
                yield "training", 1e9, dict.fromkeys(everyone, 0.0)
            works = {rank: self._work(rank) for rank in everyone}
            yield "training", max(works.values()) + 0.1 * self.step_seconds, works
            self.step += 1
            if self.step % self.validate_every == 0:
                yield "validating", 20 * self.step_seconds, dict.fromkeys(everyone, 18 * self.step_seconds)
            if self.step % self.save_every == 0:
                yield "saving", 5.0, {rank: 4.0 if rank == 0 else 0.5 for rank in everyone}

    def _work(self, rank: int) -> float:
        seconds = 0.9 * self.step_seconds * self.chance.lognormvariate(0, SIGMA)
        if self.chance.random() < 0.005:
            seconds += min(0.25, 5 * self.step_seconds)  # a collection of garbage
        if rank == self.slow_rank and self.step >= self.slow_from:
            seconds *= 2
        return seconds


STEP_SECONDS = (0.02, 0.1, 0.5, 1.0, 4.0)


@pytest.mark.parametrize("step_seconds", STEP_SECONDS)
def test_no_false_alarm_over_ten_thousand_clean_steps(step_seconds: float) -> None:
    trace = Trace(seed=1, step_seconds=step_seconds)
    watchdog = Watchdog(WatchdogSection(), range(trace.ranks))
    alarms = [
        (now, verdict)
        for now, beats in trace.looks(10_000 if step_seconds < 1 else 2_000)
        if (verdict := watchdog.observe(now, beats))
    ]
    assert alarms == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("step_seconds", STEP_SECONDS)
def test_no_false_alarm_with_many_seeds(step_seconds: float, seed: int) -> None:
    trace = Trace(seed=seed, step_seconds=step_seconds, ranks=8)
    watchdog = Watchdog(WatchdogSection(), range(trace.ranks), stages=2)
    assert not [verdict for now, beats in trace.looks(10_000) if (verdict := watchdog.observe(now, beats))]


@pytest.mark.parametrize("step_seconds", STEP_SECONDS[:4])
@pytest.mark.parametrize("seed", range(5))
def test_a_hang_is_found_in_ten_seconds_and_ends_in_a_restart(step_seconds: float, seed: int) -> None:
    at = 30 + 37 * seed
    trace = Trace(seed=seed, step_seconds=step_seconds, hang_at=at)
    watchdog = Watchdog(WatchdogSection(), range(trace.ranks))
    first_suspect = None
    for now, beats in trace.looks(at + 1):
        verdict = watchdog.observe(now, beats)
        if isinstance(verdict, Suspect):
            assert first_suspect is None, "said twice"
            first_suspect = now - trace.now
        elif isinstance(verdict, Hang):
            break
    assert first_suspect is not None and first_suspect <= 10
    assert 60 <= now - trace.now <= 120


@pytest.mark.parametrize("step_seconds", STEP_SECONDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_straggler_is_found_within_twenty_steps(step_seconds: float, seed: int) -> None:
    trace = Trace(seed=seed, step_seconds=step_seconds, slow_rank=seed % 4, slow_from=100)
    watchdog = Watchdog(WatchdogSection(), range(trace.ranks))
    found = [
        (trace.step, verdict) for now, beats in trace.looks(400) if (verdict := watchdog.observe(now, beats))
    ]
    assert [verdict.rank for _, verdict in found if isinstance(verdict, Straggler)] == [seed % 4], found
    seconds = 3.0  # three windows, and looks in between
    fewest_steps = seconds / (2 * step_seconds)
    assert found[0][0] - 100 <= max(20, fewest_steps)


def test_thousands_of_ranks_are_looked_at_in_no_time() -> None:
    watchdog, ranks, longest = Watchdog(WatchdogSection(), range(8192)), range(8192), 0.0
    for look in range(30):
        now = look * 2.0
        beats = {rank: Beat("training", look, 0, 0.0, 0.8 * now) for rank in ranks}
        began = time.perf_counter()
        assert watchdog.observe(now, beats) is None
        longest = max(longest, time.perf_counter() - began)
    assert longest < 1


def test_stages_with_different_work_are_no_stragglers() -> None:
    watchdog = Watchdog(WatchdogSection(), range(4), stages=2)
    for look in range(400):
        busy = {0: 0.4, 1: 0.4, 2: 0.9, 3: 0.9}
        now = look * LOOK_SECONDS
        beats = {rank: Beat("training", int(now / 0.1), 0, 0.0, share * now) for rank, share in busy.items()}
        assert watchdog.observe(now, beats) is None


@pytest.mark.parametrize("phase", ["starting", "validating", "saving", "leaving"])
def test_other_phases_have_a_limit_of_their_own(phase: Phase) -> None:
    watchdog = Watchdog(WatchdogSection(start_seconds=100), [0])
    verdicts = [watchdog.observe(now, {0: Beat(phase, 3, 1, now)}) for now in range(103)]
    assert all(verdict is None for verdict in verdicts[:101])
    assert isinstance(verdicts[101], Suspect) and isinstance(verdicts[102], Hang)


def test_who_waits_for_others_may_take_any_time_as_long_as_it_beats() -> None:
    watchdog = Watchdog(WatchdogSection(), [0])
    looks = [now * LOOK_SECONDS for now in range(40_000)]
    # A step now and then between hours of waiting, and no time that one took counts for the next.
    beats = [
        Beat("training" if 3000 < now < 3030 else "waiting", int(now > 3030), int(now), 0.0) for now in looks
    ]
    assert [watchdog.observe(now, {0: beat}) for now, beat in zip(looks, beats)] == [None] * len(looks)


def test_who_waits_and_does_not_beat_hangs() -> None:
    watchdog = Watchdog(WatchdogSection(name_after=5, restart_after=60), [0])
    for now in range(100):
        assert watchdog.observe(now, {0: Beat("waiting", 3, now + 1, 0.0)}) is None
    verdicts = {
        now: verdict
        for now in range(100, 162)
        if (verdict := watchdog.observe(now, {0: Beat("waiting", 3, 100, now - 100)}))
    }
    assert isinstance(verdicts[105], Suspect) and isinstance(verdicts[160], Hang) and min(verdicts) == 105


def test_a_watchman_who_slept_does_not_accuse_others() -> None:
    watchdog = Watchdog(WatchdogSection(), [0, 1])
    now = 0.0
    for _ in range(100):
        now += LOOK_SECONDS
        beats = {rank: Beat("training", int(now * 4), 1, 0.1) for rank in range(2)}
        assert watchdog.observe(now, beats) is None
    now += 3600
    assert watchdog.observe(now, beats) is None
    assert watchdog.observe(now + 1, beats) is None


def test_a_watchdog_that_is_off_says_nothing() -> None:
    watchdog = Watchdog(WatchdogSection(enabled=False, start_seconds=1), [0])
    assert [watchdog.observe(now, {0: Beat("starting", 0, 0, now)}) for now in range(9)] == [None] * 9
