"""A Ray on this machine, for `cluster.ray.within=local`: started by `submit` when none runs, ended when idle.

It listens on the loopback interface only and asks for a token. A keeper, `llmscale cluster ray-local`, is the
parent of all its processes. What is known of it lies in a folder of the user's cache; its temporary files,
among them sockets, whose paths must be short, in a private folder of the temporary directory.
"""

import fcntl
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.job import write_whole
from llmscale_launcher.ray.descendants import adopt_orphans, bury, end_descendants
from llmscale_launcher.ray.guard import guarded
from llmscale_launcher.ray.jobs import JobServer
from llmscale_launcher.ray.marks import end_marked

LOOPBACK = "127.0.0.1"
MARK = "LLMSCALE_LOCAL_RAY"
START_SECONDS = 120.0
POLL_SECONDS = 0.2
LOOK_SECONDS = 5.0
IDLE_SECONDS = 120.0
"""How long it stays without a job; to start it takes some ten seconds."""
STOP_SECONDS = 15.0
OBJECT_STORE_BYTES = 100_000_000
"""Nothing goes through Ray's object store but the arguments of a call."""
PREFERRED_DASHBOARD_PORT = 8265


@dataclass(frozen=True)
class LocalRay:
    """The Ray on this machine."""

    address: str
    """Of its job server."""
    keeper: int
    """Process id."""
    token: str

    def server(self) -> JobServer:
        return JobServer(self.address, self.token)


def state_folder() -> Path:
    """Private folder that says where the local Ray is. A home may be shared by machines, a Ray is of one."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = (Path(cache) / "llmscale" / "ray" / socket.gethostname()).absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def find_local_ray() -> LocalRay | None:
    """The Ray on this machine, if it runs and answers."""
    try:
        known = json.loads((state_folder() / "ray.json").read_text())
        found = LocalRay(known["address"], known["keeper"], read_token())
        found.server().version()
    except (FileNotFoundError, SubmitError):
        return None
    return found


@contextmanager
def local_ray(cpus: int, dashboard_host: str) -> Generator[LocalRay]:
    """The Ray on this machine, started if there is none; it does not end while the block runs.

    Raises:
        SubmitError: it does not start, with the last lines of its log.
    """
    with _locked():
        yield find_local_ray() or _start_keeper(cpus, dashboard_host)


def read_token() -> str:
    return (state_folder() / "token").read_text().strip()


def _start_keeper(cpus: int, dashboard_host: str) -> LocalRay:
    folder = state_folder()
    (folder / "ray.json").unlink(missing_ok=True)
    write_whole(folder / "token", secrets.token_hex(32), 0o600)
    log = folder / "ray.log"
    options = [f"--cpus={cpus}", f"--dashboard-host={dashboard_host}"]
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "llmscale", "cluster", "ray-local", *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while keeper.poll() is None and time.monotonic() < deadline:
        if found := find_local_ray():
            return found
        time.sleep(POLL_SECONDS)
    if keeper.poll() is None:
        keeper.terminate()
    last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    raise SubmitError(f"the local Ray did not start; the end of {log}:\n{last_lines}")


@contextmanager
def _locked() -> Generator[None]:
    """Nobody else submits to the local Ray, starts or ends it."""
    with (state_folder() / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Keeper:
    """Parent of the local Ray: starts it, and ends it when it is told to or nobody has used it for long."""

    def __init__(self, cpus: int, dashboard_host: str, idle_seconds: float = IDLE_SECONDS) -> None:
        self.cpus = cpus
        self.dashboard_host = dashboard_host
        self.idle_seconds = idle_seconds
        self.told_to_end = False
        self.temporary = Path(tempfile.mkdtemp(prefix="llmscale-ray-"))

    def run(self) -> int:
        """Keep it until it is over; main thread only."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # processes of Ray that are killed may dump 90 MB
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        folder = str(state_folder())
        end_marked(MARK, lambda value: value == folder)  # what a keeper that was killed has left
        adopt_orphans()
        port = _free_port(PREFERRED_DASHBOARD_PORT)
        host = LOOPBACK if self.dashboard_host in ("0.0.0.0", "::") else self.dashboard_host
        server = JobServer(f"http://{host}:{port}", read_token())
        ray = subprocess.Popen(
            guarded(self._command(port), os.getpid()), env=self._environment(), start_new_session=True
        )
        try:
            if not self._wait_until_up(ray, server):
                return 1
            known = LocalRay(server.address, os.getpid(), "")
            write_whole(state_folder() / "ray.json", json.dumps({**asdict(known), "token": None}), 0o600)
            return self._keep(ray, server)
        finally:
            self._end(ray)

    def _command(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--node-ip-address={LOOPBACK}", f"--port={_free_port()}"),
            *(f"--dashboard-host={self.dashboard_host}", f"--dashboard-port={port}"),
            *(f"--ray-client-server-port={_free_port()}", f"--dashboard-agent-listen-port={_free_port()}"),
            *(f"--temp-dir={self.temporary}", f"--num-cpus={self.cpus}"),
            *(f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"),
            *("--include-log-monitor=false", "--min-worker-port=0", "--max-worker-port=0"),
        ]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return kept | {
            MARK: str(state_folder()),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(state_folder() / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Has Ray keep the loopback address that it is given, as it does on macOS, and listen there only.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    def _wait_until_up(self, ray: subprocess.Popen[bytes], server: JobServer) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while ray.poll() is None and not self.told_to_end and time.monotonic() < deadline:
            with suppress(SubmitError):
                server.version()
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _keep(self, ray: subprocess.Popen[bytes], server: JobServer) -> int:
        used = looked = time.monotonic()
        while ray.poll() is None and not self.told_to_end:
            now = time.monotonic()
            if now - looked >= LOOK_SECONDS:
                looked = now
                bury(ray.pid)
                if _has_jobs(server):
                    used = now
                elif now - used >= self.idle_seconds and self._retire(server):
                    return 0
            time.sleep(POLL_SECONDS)
        return 0 if self.told_to_end else 1

    def _retire(self, server: JobServer) -> bool:
        """Make this Ray unknown, so that nobody submits to it any more; False if somebody just has."""
        with _locked():
            if _has_jobs(server):
                return False
            (state_folder() / "ray.json").unlink(missing_ok=True)
            return True

    def _end(self, ray: subprocess.Popen[bytes]) -> None:
        ray.terminate()
        with suppress(subprocess.TimeoutExpired):
            ray.wait(STOP_SECONDS)
        ray.kill()
        ray.wait()
        end_descendants()
        (state_folder() / "ray.json").unlink(missing_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.told_to_end = True


def _has_jobs(server: JobServer) -> bool:
    """Whether a job waits or runs. A server that does not answer may have some."""
    try:
        return any(not job.is_over for job in server.jobs().values())
    except SubmitError:
        return True


def _free_port(preferred: int = 0) -> int:
    """A port of the loopback interface that nobody listens on, `preferred` if that is one."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((LOOPBACK, preferred))
        except OSError:
            return _free_port()
        return int(candidate.getsockname()[1])
