"""How much a process works, from what the kernel counts about its main thread. No torch."""

import os
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
STOPPED = ("T", "t")


class Activity:
    """Adds up the time in which a process's main thread was not waiting for anything.

    Running, wanting to run, and being stopped by a signal count; sleeping (in a collective, for a file)
    does not. Where the kernel does not count the time of wanting to run, it is left out.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._stopped = 0.0
        self._time = time.monotonic()
        self._ran = _ran_seconds(pid)

    def busy_seconds(self) -> float:
        """Since the process began; 0 or the last value where it is gone."""
        now, ran = time.monotonic(), _ran_seconds(self.pid)
        if ran is None:
            return (self._ran or 0.0) + self._stopped
        if process_state(self.pid) in STOPPED:
            self._stopped += max(0.0, now - self._time - (ran - (self._ran or ran)))
        self._time, self._ran = now, ran
        return ran + self._stopped


def process_state(pid: int) -> str:
    """R running, S sleeping, D waiting for a disk, T stopped, Z ended and not yet waited for; X gone."""
    fields = _stat(pid)
    return fields[0] if fields else "X"


def _ran_seconds(pid: int) -> float | None:
    """On a processor or in the queue for one; None where the process is gone."""
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        return (int(ran) + int(waited)) / 1e9
    except (OSError, ValueError):
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / TICK if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
