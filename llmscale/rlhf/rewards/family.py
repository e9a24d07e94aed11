"""A worker with all that it has started: who they are, and how they end together."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

END_SECONDS = 10.0


def family_of(pid: int) -> list[psutil.Process]:
    """The process and its descendants that run. The worker adopts those whose parents have ended."""
    try:
        worker = psutil.Process(pid)
        everyone = [worker, *worker.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    return [process for process in everyone if _runs(process)]


def end_family(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker that leads a session of its own, and its descendants, whatever groups they are in.

    They are stopped before they are killed: of a fork bomb a few would always be born between the look and
    the kill. The worker is the last, because orphans are found through it.
    """
    _send_to_group(worker.pid, signal.SIGSTOP)
    deadline = time.monotonic() + END_SECONDS
    while (others := family_of(worker.pid)[1:]) and time.monotonic() < deadline:
        _stop_groups(others)
        for process in others:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    _send_to_group(worker.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that waits for a broken disk does not even die
        worker.wait(END_SECONDS)


def _stop_groups(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            group = os.getpgid(process.pid)
            if group != os.getpgid(0):
                _send_to_group(group, signal.SIGSTOP)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send_to_group(group: int, sent: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, sent)
