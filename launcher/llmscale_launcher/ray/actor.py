"""What Ray places on a node: a holder of the same agent process that SLURM starts there.

Restarts, signals, watchdog: nothing of it is done here. No import of Ray either: the driver makes an actor
of this class.
"""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmscale_launcher.ray.fence import end_earlier, mark
from llmscale_launcher.ray.guard import guarded

SET_BY_RAY = "OMP_NUM_THREADS"
"""Ray sets it to the CPUs of the bundle, which all ranks of the node share; the agent divides them."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as candidate:
        candidate.bind(("", 0))
        return int(candidate.getsockname()[1])


@dataclass(frozen=True)
class AgentStart:
    """How to start a node's agent."""

    command: tuple[str, ...]
    variables: Mapping[str, str]
    run_folder: Path
    attempt: str
    log: Path
    """Appended to."""


class NodeActor:
    """One node's agent as a process group of its own, which dies with this actor's process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._signals: list[signal.Signals] = []
        self._lock = threading.Lock()

    def where(self) -> str:
        """Name of the machine; who asks knows by the answer that the actor has been placed."""
        return socket.gethostname()

    def run(self, start: AgentStart) -> int:
        """Run the agent to its end; returns its exit code, negative for a signal.

        The thread of this call starts the agent and waits for it: the kernel kills a guarded process when
        the thread that started it ends.
        """
        end_earlier(start.run_folder, start.attempt)
        environment = {name: value for name, value in os.environ.items() if name != SET_BY_RAY}
        environment |= mark(start.run_folder, start.attempt) | dict(start.variables)
        with start.log.open("ab") as output, self._lock:
            self._process = subprocess.Popen(
                guarded(start.command, os.getpid()),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for number in self._signals:
                self._process.send_signal(number)
        return self._process.wait()

    def send(self, number: int) -> None:
        """Pass a signal on to the agent: now, or when it starts."""
        with self._lock:
            if self._process is None:
                self._signals.append(signal.Signals(number))
            else:
                self._process.send_signal(number)
