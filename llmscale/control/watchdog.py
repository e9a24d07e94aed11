"""When a run hangs, and who slows it down: judged from the beats of its ranks. No clock, no torch.

Ranks train in lockstep, so a hang shows on all of them at once: no step ends any more. What is too long
follows from how long steps took, so that neither slow models nor fast ones need their own settings.
Who is at fault cannot be told from steps; see `llmscale.control.culprit`.

A straggler does not stop the run, and in lockstep its steps take as long as everyone's. It is told by what
it does in that time: it works (or is stopped) while the others wait for it.
"""

import itertools
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmscale.config.cluster import WatchdogSection

Phase = Literal["starting", "training", "validating", "saving", "leaving", "waiting"]
"""What a rank is about. Only steps come so regularly that their absence means something, and beats while a
rank is waiting: for processes that are no ranks, and whose time it limits itself."""

TIMED_STEPS = 100
NAME_FACTOR = 4.0
RESTART_FACTOR = 20.0
BLIND_SECONDS = 2.5
"""Longest time between two looks. After a longer one the watch begins anew: it was the watchman who slept."""

WINDOWS = 3
WINDOW_STEPS = 5
WINDOW_SECONDS = 0.7
"""A rank straggles when it does so in three windows in a row, each at least this long: one pause, such as a
collection of garbage, fills one window, or parts of two."""
STRAGGLER_RATIO = 1.6
STRAGGLER_SHARE = 0.5
RECOVERED_RATIO = 1.2


@dataclass(frozen=True)
class Beat:
    """What the agent saw of a rank at one moment."""

    phase: Phase
    step: int
    """Steps done."""
    count: int
    """Beats so far."""
    age_seconds: float
    """Since the last beat."""
    busy_seconds: float = 0.0
    """Time since its start in which its main thread ran, wanted to run, or was stopped: all but waiting."""


@dataclass(frozen=True)
class Suspect:
    """No step for so long that the rank which holds up the others should be named. Said once a stall."""

    seconds: float
    limit: float


@dataclass(frozen=True)
class Hang:
    """No step for so long that the ranks must start again."""

    seconds: float
    limit: float


@dataclass(frozen=True)
class Straggler:
    """A rank that the others wait for, step after step. Said once, and again after it has recovered."""

    rank: int
    ratio: float
    """Its share of time not spent waiting, over the median of the ranks that do the same work."""


Verdict = Suspect | Hang | Straggler | None


class Watchdog:
    """Watches one start of the ranks; a new start gets a new one."""

    def __init__(self, options: WatchdogSection, ranks: Sequence[int], stages: int = 1) -> None:
        """
        Args:
            options: the limits.
            ranks: all ranks of the world.
            stages: pipeline stages, whose ranks are compared among themselves only.
        """
        self.options = options
        self._stall = _Stall(options)
        self._stragglers = _Stragglers(sorted(ranks), stages)
        self._last_look: float | None = None

    def observe(self, now: float, beats: Mapping[int, Beat]) -> Verdict:
        """Judge what is seen at `now` (seconds of any clock that only goes forward).

        Several times a second is best; a look after more than BLIND_SECONDS starts the watch anew.
        """
        if not self.options.enabled or not beats:
            return None
        blind = self._last_look is None or now - self._last_look > BLIND_SECONDS
        self._last_look = now
        stalled = self._stall.observe(now, beats, blind)
        straggling = self._stragglers.observe(now, beats, blind)
        return stalled or straggling


class _Stall:
    """Times the steps, and the time since the last one."""

    def __init__(self, options: WatchdogSection) -> None:
        self.options = options
        self.times: deque[float] = deque(maxlen=TIMED_STEPS)
        self.only_first = False
        self.step = -1
        self.phases: frozenset[str] = frozenset()
        self.since = 0.0
        self.named = False
        self.pulse = 0
        """Beats so far while all ranks are waiting, else 0."""
        self.waits = False
        """Steps are as long as what ranks wait for: they tell nothing of the next ones."""

    def observe(self, now: float, beats: Mapping[int, Beat], blind: bool) -> Suspect | Hang | None:
        step = min(beat.step for beat in beats.values())
        phases = frozenset(beat.phase for beat in beats.values())
        pulse = sum(beat.count for beat in beats.values()) if phases == {"waiting"} else 0
        self.waits |= pulse > 0
        if blind:
            self.since = now
        if step != self.step or phases != self.phases or pulse != self.pulse:
            only_training = phases == self.phases == {"training"} and not self.waits
            if only_training and step > self.step and not blind:
                steps = step - self.step
                if self.only_first:
                    # It is often much longer than the others, and there is a better measure now.
                    self.times.clear()
                self.only_first = not self.times
                self.times.extend([(now - self.since) / steps] * min(steps, TIMED_STEPS))
            self.step, self.phases, self.since, self.named = step, phases, now, False
            self.pulse = pulse
        return self._judge(now - self.since)

    def _judge(self, seconds: float) -> Suspect | Hang | None:
        name_after = restart_after = self.options.start_seconds
        if self.pulse:
            name_after = self.options.name_after
            restart_after = max(self.options.restart_after, name_after)
        elif self.phases == {"training"} and self.times:
            slowest = max(self.times)
            name_after = max(self.options.name_after, NAME_FACTOR * slowest)
            restart_after = max(self.options.restart_after, RESTART_FACTOR * slowest, name_after)
        if not self.named and seconds > name_after:
            self.named = True
            return Suspect(seconds, name_after)
        if seconds > restart_after:
            return Hang(seconds, restart_after)
        return None


@dataclass(frozen=True)
class _Reading:
    """Running sums over the time in which all ranks trained."""

    step: int
    seconds: float
    busy: Mapping[int, float]


class _Stragglers:
    def __init__(self, ranks: Sequence[int], stages: int) -> None:
        self.groups = _groups(ranks, stages)
        self.named: set[int] = set()
        self.before: tuple[float, Mapping[int, Beat]] | None = None
        self.seconds = 0.0
        self.busy = dict.fromkeys(ranks, 0.0)
        self.readings: deque[_Reading] = deque()
        """One at most for every step."""

    def observe(self, now: float, beats: Mapping[int, Beat], blind: bool) -> Straggler | None:
        training = beats.keys() == self.busy.keys() and all(
            beat.phase == "training" for beat in beats.values()
        )
        before, self.before = self.before, (now, beats) if training else None
        # Saving or validating, one rank may well do more than the others; such time is left out.
        if not training or before is None or blind:
            return None
        self._add(now - before[0], before[1], beats)
        step = min(beat.step for beat in beats.values())
        if self.readings and step == self.readings[-1].step:
            return None
        self.readings.append(_Reading(step, self.seconds, dict(self.busy)))
        shares = self._shares_of_windows()
        return self._judge(shares) if shares else None

    def _add(self, seconds: float, before: Mapping[int, Beat], beats: Mapping[int, Beat]) -> None:
        self.seconds += seconds
        for rank, beat in beats.items():
            self.busy[rank] += beat.busy_seconds - before[rank].busy_seconds

    def _shares_of_windows(self) -> list[dict[int, float]]:
        """Of the newest windows, the newest first; none before there are enough."""
        ends = [self.readings[-1]]
        while len(ends) <= WINDOWS:
            start = self._start_of_window(ends[-1])
            if start is None:
                return []
            ends.append(start)
        while self.readings[0].step < ends[-1].step:
            self.readings.popleft()
        return [_shares(start, end) for end, start in itertools.pairwise(ends)]

    def _start_of_window(self, end: _Reading) -> _Reading | None:
        for reading in reversed(self.readings):
            if reading.step <= end.step - WINDOW_STEPS and reading.seconds <= end.seconds - WINDOW_SECONDS:
                return reading
        return None

    def _judge(self, shares: list[dict[int, float]]) -> Straggler | None:
        windows = [_ratios(window, self.groups) for window in shares]
        self.named = {
            rank for rank in self.named if max(window[rank] for window in windows) > RECOVERED_RATIO
        }
        ratios = {rank: min(window[rank] for window in windows) for rank in windows[0]}
        if not ratios:
            return None
        rank = max(ratios, key=lambda one: ratios[one])
        if ratios[rank] < STRAGGLER_RATIO or shares[0][rank] < STRAGGLER_SHARE or rank in self.named:
            return None
        self.named.add(rank)
        return Straggler(rank, ratios[rank])


def _groups(ranks: Sequence[int], stages: int) -> list[list[int]]:
    """The ranks of each pipeline stage, where there are several; stages are consecutive blocks of ranks."""
    groups: dict[int, list[int]] = {}
    for place, rank in enumerate(ranks):
        groups.setdefault(place * stages // len(ranks), []).append(rank)
    return [group for group in groups.values() if len(group) > 1]


def _shares(start: _Reading, end: _Reading) -> dict[int, float]:
    seconds = end.seconds - start.seconds
    return {rank: (busy - start.busy[rank]) / seconds for rank, busy in end.busy.items()}


def _ratios(shares: Mapping[int, float], groups: Sequence[Sequence[int]]) -> dict[int, float]:
    """Each rank's share over the median of its group, in which the busiest does not count."""
    ratios: dict[int, float] = {}
    for group in groups:
        usual = statistics.median(sorted(shares[rank] for rank in group)[:-1])
        ratios |= {rank: shares[rank] / max(usual, 0.01) for rank in group}
    return ratios
