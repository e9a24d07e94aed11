"""One attempt of a run at a time, and no further one where all before it brought nothing."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from llmscale.config.problems import InputError
from llmscale.control.exit_codes import EXIT_NO_PROGRESS, EXIT_SAVED
from llmscale.control.requeue import MOST_FAILURES, no_progress, tries_without_progress
from llmscale.run.committed import committed_step
from llmscale.runtime.events import EventLog, read_events
from llmscale.runtime.run_folder import locked

LOCK_SECONDS = 60.0
"""How long the attempt before may take to be gone; a shared file system may hold its lock for a while."""
RETRY_SECONDS = 0.5


def as_only_attempt(folder: Path, run: Callable[[], int]) -> int:
    """Call `run` while no other attempt of this run is on; returns its exit code, or why it was not called:
    75 where the attempt before does not leave, 3 where several attempts brought no newer checkpoint."""
    with ExitStack() as stack:
        try:
            _hold(folder, stack)
        except InputError as error:
            print(*error.problems, sep="\n", file=sys.stderr)
            return EXIT_SAVED
        committed = committed_step(folder)
        tries = tries_without_progress([(event.kind, event.step) for event in read_events(folder)], committed)
        if tries.failures >= MOST_FAILURES:
            EventLog(folder).write("failed", committed, cause=no_progress(tries))
            print(no_progress(tries), file=sys.stderr)
            return EXIT_NO_PROGRESS
        return run()


def _hold(folder: Path, stack: ExitStack) -> None:
    """Lock the run folder until `stack` ends, once the attempt before is gone.

    Raises:
        InputError: it is not within LOCK_SECONDS.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            stack.enter_context(locked(folder))
            return
        except InputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
