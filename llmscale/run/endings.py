"""How a run ended, or that it has not: from its events, and from whether its job still lives. No torch."""

from collections.abc import Sequence
from pathlib import Path

from llmscale_launcher.backends.table import backend
from llmscale_launcher.job import read_job

from llmscale.runtime.events import Event, read_events
from llmscale.runtime.run_folder import read_agent

CANCELLED_NAME = ".cancelled"
"""File in a run folder: a person has asked for the end of the run, so nobody requeues it."""

ENDINGS = ("finished", "preempted", "failed")


def last_ending(events: Sequence[Event]) -> Event | None:
    """The event that ended the newest attempt; None while it goes on, or where it ended without a word."""
    ending = None
    for event in events:
        if event.kind in ENDINGS:
            ending = event
        elif event.kind in ("submitted", "started", "restarted"):
            ending = None
    return ending


def how_it_ended(folder: Path) -> str | None:
    """`finished`, another ending, or `gone without a word`; None while the run waits, runs or is requeued.

    What has finished has finished, even while its job takes a moment to leave.
    """
    ending = last_ending(read_events(folder))
    if ending is not None and ending.kind == "finished":
        return ending.kind
    if _is_live(folder):
        return None
    # Between the two looks it may have ended.
    ending = last_ending(read_events(folder))
    return ending.kind if ending is not None else "gone without a word"


def _is_live(folder: Path) -> bool:
    agent = read_agent(folder)
    if agent is not None and agent.is_alive():
        return True
    job = read_job(folder)
    return job is not None and backend(job.kind).states([job])[job.key].is_live
