"""Whether a run is tried again: the outermost of the three loops, as a pure function of what has happened.

An attempt is one job of a scheduler, or one turn of the supervisor where there is no scheduler. What is
counted comes from the run's events, which outlive every attempt, so whoever asks gets the same answer.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llmscale.control.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_NO_PROGRESS, EXIT_SAVED

MOST_FAILURES = 3
"""Failed attempts without a newer checkpoint after which another one would only fail again."""
MANY_STOPS = 5
"""Requests to stop without a newer checkpoint after which a person should know."""
SIGNAL_BASE = 128
"""A shell reports a process that signal n ended as exit code 128 + n."""

EventStep = tuple[str, int | None]
"""Kind and step of a line of `events.jsonl`."""


@dataclass(frozen=True)
class Rules:
    """What the config says about requeues."""

    requeue: bool
    max_requeues: int


@dataclass(frozen=True)
class Tries:
    """Attempts since the newest committed checkpoint grew, or since the run was submitted."""

    failures: int = 0
    """Ended without having been asked to."""
    stops: int = 0
    """Asked to stop before they had saved anything new."""


@dataclass(frozen=True)
class Decision:
    """What comes after an attempt."""

    action: Literal["requeue", "finish", "stop"]
    """requeue: try again; finish: the attempt's word stands; stop: another try would bring nothing."""
    exit_code: int
    """What the run ends with if it is not tried again."""
    reason: str


@dataclass(frozen=True)
class _Attempt:
    began: int
    """Committed step at its start, 0 for none."""
    saved: int
    """Newest step that it is known to have committed, at least `began`."""
    asked_to_stop: bool


def decide(exit_code: int, tries: Tries, requeues: int, rules: Rules, cancelled: bool = False) -> Decision:
    """What comes after an attempt that ended with `exit_code`.

    Args:
        exit_code: of the attempt; negative, or 128 and more, for one that a signal ended.
        tries: with the attempt that has just ended among them.
        requeues: how often the run has been tried again so far.
        rules: what the config allows.
        cancelled: whether a person has asked for the end of the run.
    """
    killed_by = signal_of(exit_code)
    if exit_code == EXIT_DONE:
        return Decision("finish", EXIT_DONE, "done")
    if killed_by is None and exit_code != EXIT_SAVED:
        return Decision("finish", exit_code, f"ended with exit code {exit_code}, which is final")
    final = EXIT_SAVED if killed_by is None else EXIT_FAILED
    ending = "saved and asks to go on" if killed_by is None else f"killed by {killed_by}"
    if cancelled:
        return Decision("finish", final, f"{ending}; cancelled")
    if tries.failures >= MOST_FAILURES:
        return Decision("stop", EXIT_NO_PROGRESS, no_progress(tries))
    if not rules.requeue:
        return Decision("finish", final, f"{ending}; cluster.requeue is false")
    if requeues >= rules.max_requeues:
        return Decision("finish", final, f"{ending}; cluster.max_requeues={rules.max_requeues} is used up")
    return Decision("requeue", final, ending + _warning(tries))


def no_progress(tries: Tries) -> str:
    """Why a run that has tried this often is not tried again."""
    return f"{tries.failures} attempts failed without a newer checkpoint"


def _warning(tries: Tries) -> str:
    if tries.stops < MANY_STOPS:
        return ""
    advice = "set checkpoint.every lower, or ask for more time"
    return f"; the last {tries.stops} attempts were stopped before they had saved anything new: {advice}"


def signal_of(exit_code: int) -> str | None:
    """Name of the signal that ended a process, from its exit code or from what a shell made of it."""
    number = -exit_code if exit_code < 0 else exit_code - SIGNAL_BASE
    if number <= 0:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def tries_without_progress(events: Sequence[EventStep], committed: int | None = None) -> Tries:
    """Count the attempts at the end of a run's events that brought no newer checkpoint.

    A stop that was asked for stands neither for nor against a failure: a run that fails whenever it is let
    run has failed three times, however often it was preempted in between.

    Args:
        events: of the run, oldest first; `submitted` and `finished` begin the count anew.
        committed: step of the newest committed checkpoint now. Left out: as far as `saved` events tell.
    """
    failures = stops = 0
    attempts = list(_attempts(events))
    for attempt, following in zip(attempts, [*attempts[1:], None]):
        # Where the next attempt began is the proof: an event may be lost, a checkpoint may have been damaged.
        if following is not None:
            reached = following.began
        else:
            reached = attempt.saved if committed is None else committed
        if reached > attempt.began:
            failures = stops = 0
        elif attempt.asked_to_stop:
            stops += 1
        else:
            failures += 1
    return Tries(failures, stops)


def _attempts(events: Sequence[EventStep]) -> Iterator[_Attempt]:
    anew = [index for index, (kind, _) in enumerate(events) if kind in ("submitted", "finished")]
    current = events[anew[-1] :] if anew else events
    starts = [index for index, (kind, _) in enumerate(current) if kind == "started"]
    for start, end in zip(starts, [*starts[1:], len(current)]):
        began = current[start][1] or 0
        span = current[start:end]
        yield _Attempt(began, max([began, *_saved_steps(span)]), _asked_to_stop(span))


def _saved_steps(span: Sequence[EventStep]) -> Iterator[int]:
    yield from (step or 0 for kind, step in span if kind == "saved")


def _asked_to_stop(span: Sequence[EventStep]) -> bool:
    """Whether a request to stop ended an attempt. A lost node ends one with `preempted` too, for another try;
    that is a failure all the same."""
    starts = [index for index, (kind, _) in enumerate(span) if kind in ("started", "restarted")]
    kinds = [kind for kind, _ in span[starts[-1] :]]
    endings = [kind for kind in kinds if kind in ("preempted", "failed")]
    return endings[-1:] == ["preempted"] and "node_lost" not in kinds
