"""A real Ray of several raylets on this machine's loopback interface, with a token, for tests."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.ray.jobs import JobServer
from llmscale_launcher.ray.marks import end_marked

from tests.cluster.waiting import wait_until

MARK = "LLMSCALE_TEST_RAY"
LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80_000_000
QUICK_DEATH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""A raylet that is killed counts as dead after a second."""


@dataclass
class RayCluster:
    """`nodes` raylets, the first with the head's services; call `stop` at the end."""

    nodes: int = 3
    cpus: int = 2
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray")))
    """Short: paths of sockets begin with it."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        self.token = secrets.token_hex(32)
        self.token_path = self.folder / "token"
        self.token_path.touch(0o600)
        self.token_path.write_text(self.token)
        self.port, self.dashboard_port = _free_port(), _free_port()
        self._start_raylet(
            *("--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}"),
            *(f"--ray-client-server-port={_free_port()}", f"--dashboard-host={LOOPBACK}"),
        )
        wait_until(self._answers, "the job server answers", 60)
        for _ in range(1, self.nodes):
            self.add_node()
        wait_until(lambda: self.alive() == self.nodes, f"{self.nodes} raylets are alive", 60)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    @property
    def server(self) -> JobServer:
        return JobServer(self.address, self.token)

    @property
    def variables(self) -> dict[str, str]:
        """What a client of this Ray needs in its environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}

    def add_node(self) -> int:
        """Start another raylet; returns its number."""
        self._start_raylet(f"--address={address_of(0)}:{self.port}")
        return len(self.processes) - 1

    def raylet(self, node: int) -> psutil.Process:
        """The raylet itself among the processes of a node."""
        children = psutil.Process(self.processes[node].pid).children(recursive=True)
        return next(child for child in children if child.name() == "raylet")

    def living(self) -> list[int]:
        """The nodes whose raylet was not killed."""
        return [node for node, process in enumerate(self.processes) if process.poll() is None]

    def node_of(self, process: psutil.Process) -> int:
        """The node that a process was started on."""
        raylet = next(parent for parent in process.parents() if parent.name() == "raylet")
        return next(node for node in self.living() if self.raylet(node) == raylet)

    def kill_raylet(self, node: int) -> None:
        """SIGKILL, as when the machine is lost; what it leaves behind has to end by itself."""
        self.raylet(node).send_signal(signal.SIGKILL)

    def alive(self) -> int:
        """How many raylets the head thinks are alive."""
        request = urllib.request.Request(f"{self.address}/api/v0/nodes", headers=self.headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            listed = json.loads(response.read())["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in listed)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + 5
        while self.living() and time.monotonic() < deadline:
            time.sleep(0.1)
        end_marked(MARK, lambda value: value == str(self.folder))
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        assert self.processes[0].poll() is None, (self.folder / "node-0.log").read_text()
        with suppress(SubmitError):
            return bool(self.server.version())
        return False

    def _start_raylet(self, *options: str) -> None:
        node = len(self.processes)
        temporary = self.folder / str(node)
        command = [
            *("/bin/bash", "-c", 'ulimit -c 0; exec "$@"', "raylet"),
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={address_of(node)}", f"--num-cpus={self.cpus}", f"--temp-dir={temporary}"),
            *(f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-log-monitor=false"),
            *("--min-worker-port=0", "--max-worker-port=0"),
            # Every agent listens there on 127.0.0.1 too.
            *(f"--dashboard-agent-listen-port={_free_port()}", *options),
        ]
        with (self.folder / f"node-{node}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.processes.append(process)

    def _environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **QUICK_DEATH,
            **self.variables,
            MARK: str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }


def address_of(node: int) -> str:
    """Every raylet has an address of its own, and none is 127.0.0.1, which Ray would replace."""
    return f"127.0.0.{11 + node}"


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind((LOOPBACK, 0))
        return int(candidate.getsockname()[1])
