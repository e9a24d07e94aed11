"""The run's coordinator as a child of the driver: it outlives any of the nodes, and dies with the driver."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmscale_launcher.ray.guard import guarded

ADDRESS_NAME = ".coordinator"
START_SECONDS = 120.0
POLL_SECONDS = 0.05


class CoordinatorProcess:
    """`llmscale cluster coordinate RUN_FOLDER`; what it says goes where the driver's words go."""

    def __init__(
        self, command: Sequence[str], run_folder: Path, host: str, variables: Mapping[str, str]
    ) -> None:
        """`host`: address of this machine for the nodes."""
        self._written_to = run_folder / ADDRESS_NAME
        self._written_to.unlink(missing_ok=True)  # of a driver that was killed
        options = [f"--host={host}", f"--written-to={self._written_to}"]
        self._process = subprocess.Popen(
            guarded([*command, str(run_folder), *options], os.getpid()),
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
        )

    def address(self) -> str | None:
        """HOST:PORT once it listens; None where it ended, or took too long, before it did."""
        deadline = time.monotonic() + START_SECONDS
        while not self._written_to.exists():
            if self.exit_code is not None or time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)
        return self._written_to.read_text().strip()

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._process.poll()

    def end(self) -> int:
        """Kill it if it still runs; returns its exit code."""
        self._process.kill()
        code = self._process.wait()
        self._written_to.unlink(missing_ok=True)
        return code
