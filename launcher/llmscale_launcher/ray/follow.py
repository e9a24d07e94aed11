"""An attempt of a run as a job of a Ray that was started for it: handed over, followed, stopped."""

import secrets
import shlex
import signal
import sys
import time
from pathlib import Path

from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.ray.jobs import STOP_VARIABLES, JobServer, RayJob

POLL_SECONDS = 0.5
JOIN_SECONDS = 300.0
"""How long the machines of a Ray may take to join it."""
SILENT_SECONDS = 60.0
"""How long the job server may fail to answer before it counts as dead."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class JobFollower:
    """`JobFollower(run_folder, server).run()`: main thread only."""

    def __init__(self, run_folder: Path, server: JobServer) -> None:
        self.run_folder = run_folder
        self.server = server
        self.id = f"{run_folder.name}-{secrets.token_hex(4)}"
        self.asked_to_stop = False
        self.stopped = False
        self.written = 0
        """Characters of the job's log that have been passed on."""

    def run(self) -> RayJob:
        """Run one attempt as a job, write what it says, ask it to save and leave on a signal.

        Returns how it ended.

        Raises:
            SubmitError: the job server refuses the job, or has been silent for long.
        """
        # The batch script has had the nodes looked at.
        attempt = ("ray-attempt", "--no-preflight", str(self.run_folder))
        command = [sys.executable, "-m", "llmscale", "cluster", *attempt]
        entrypoint = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)}"
        self.server.submit(self.id, entrypoint, STOP_VARIABLES, {"run": str(self.run_folder)})
        print(f"job {self.id} of the Ray at {self.server.address}", flush=True)
        heard = time.monotonic()
        while True:
            try:
                job = self._look()
                heard = time.monotonic()
                if job.is_over:
                    return job
            except SubmitError:
                if time.monotonic() - heard > SILENT_SECONDS:
                    raise
            time.sleep(POLL_SECONDS)

    def listen(self) -> None:
        """Hear signals from now on."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def wait_for_machines(self, count: int) -> None:
        """Wait until the job server answers and Ray has `count` machines, or somebody asks to stop.

        Raises:
            SubmitError: they have not all joined in time.
        """
        deadline = time.monotonic() + JOIN_SECONDS
        said = "it has not answered so far"
        while not self.asked_to_stop:
            try:
                found = len(self.server.machines())
                if found >= count:
                    return
                said = f"it has {found} of {count} machines"
            except SubmitError as error:
                said = str(error)
            if time.monotonic() > deadline:
                raise SubmitError(f"the Ray at {self.server.address} is not whole in time: {said}")
            time.sleep(POLL_SECONDS)

    def _look(self) -> RayJob:
        if self.asked_to_stop and not self.stopped:
            self.server.stop(self.id)
            self.stopped = True
        job = self.server.job(self.id)
        if job is None:
            raise SubmitError(f"the Ray at {self.server.address} has forgotten the job {self.id}")
        log = self.server.logs(self.id)
        print(log[self.written :], end="", flush=True)
        self.written = len(log)
        return job

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.asked_to_stop = True
