"""`llmscale cluster preflight`: every node looks at itself, and the first names those that are not fit."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import llmscale
from llmscale.config.schema import Config
from llmscale.control.preflight import GIB, Findings, Verdict, expand_hosts, unique_names
from llmscale.parallel.environment import NodeEnvironment
from llmscale.run.preflight_host import CANARY, Host, meeting_folder, sign
from llmscale.run.preflight_measure import Measurement, World, summary
from llmscale.runtime.events import EventLog
from llmscale.runtime.link import Link, LinkServer, read_token
from llmscale.runtime.rendezvous import interface_of, listening_address, own_address

EXIT_FIT = 0
EXIT_BAD_NODES = 1

LIMIT_SECONDS = 60.0
POLL_SECONDS = 0.02
PING_SECONDS = 0.3
CANARY_SHARE = 0.25
"""Part of the time that a shared folder may take to show a file of another node."""
RESULT_NAME = "preflight.json"
BAD_NODES_NAME = "bad_nodes.txt"


@dataclass(frozen=True)
class Probes:
    """How a node looks at itself."""

    clock: Callable[[], float] = time.time
    measurement: Callable[[Path, str], Measurement] = Measurement
    package: Path = Path(llmscale.__file__).parent


@dataclass
class Guest:
    """A node's own look at itself, and its talk with the first node."""

    folder: Path
    environment: NodeEnvironment
    name: str
    link: Link
    meeting: Path
    measurement: Measurement
    probes: Probes
    began: float
    seconds: float
    nonce: str = ""
    nonce_since: float = 0.0
    clock_seconds: float = 0.0
    quickest_ping: float = float("inf")
    last_ping: float = 0.0
    world: World | None = None
    answered: bool = False
    """It has seen the first node's canary, and said so in the run folder."""
    told: tuple[bool, bool] = (False, False)
    verdict: Verdict | None = None

    def run(self) -> Verdict | None:
        """The first node's verdict; None where none came in time."""
        self._leave_sign()
        self.measurement.start()
        while self.verdict is None and time.monotonic() < self.began + self.seconds:
            now = time.monotonic()
            for line in self.link.poll(now):
                self._hear(json.loads(line))
            if self.link.ready:
                self._speak(now)
            self.link.wait(POLL_SECONDS)
        self.link.hang_up("done", time.monotonic())
        shutil.rmtree(self.meeting, ignore_errors=True)
        return self.verdict

    def _leave_sign(self) -> None:
        self.meeting.mkdir(parents=True, exist_ok=True)
        (self.meeting / sign(self.environment.index)).write_text(self.name)

    def _hear(self, message: dict[str, Any]) -> None:
        if message["kind"] == "pong":
            taken = self.probes.clock() - message["sent"]
            if taken < self.quickest_ping:
                # The quicker the answer, the surer it was given half-way.
                self.quickest_ping = taken
                self.clock_seconds = message["sent"] + taken / 2 - message["clock"]
            if not self.nonce:
                self.nonce, self.nonce_since = message["nonce"], time.monotonic()
        elif message["kind"] == "world":
            self.world = World(**message["world"])
            self.measurement.meet(self.world)
        else:
            self.verdict = Verdict(**message["verdict"])

    def _speak(self, now: float) -> None:
        if now - self.last_ping > PING_SECONDS:
            self.last_ping = now
            self._send({"kind": "ping", "sent": self.probes.clock()}, now)
        state = (self._looked(now), self.measurement.over)
        if state[0] and state != self.told:
            self.told = state
            findings = asdict(self._findings())
            self._send({"kind": "findings", "findings": findings, "done": self.measurement.over}, now)

    def _send(self, message: dict[str, Any], now: float) -> None:
        self.link.send(json.dumps({"index": self.environment.index, "name": self.name, **message}), now)

    def _looked(self, now: float) -> bool:
        if self.measurement.local is None or not self.nonce:
            return False
        return self._sees_canary() or now - self.nonce_since > CANARY_SHARE * self.seconds

    def _sees_canary(self) -> bool:
        path = self.meeting / CANARY
        if not self.answered and path.exists() and path.read_text() == self.nonce:
            # Whole or not at all: the first node may look at any moment.
            _write(self.meeting / f"{sign(self.environment.index)}.answer", self.nonce)
            self.answered = True
        return self.answered

    def _findings(self) -> Findings:
        local = self.measurement.local
        assert local is not None
        found = Findings(
            index=self.environment.index,
            name=self.name,
            clock_seconds=self.clock_seconds,
            sees_canary=self._sees_canary(),
            free_bytes=free_bytes(self.folder),
            stage=self.measurement.stage,
            link_bytes=self.measurement.link_bytes,
            **summary(local),  # pyright: ignore[reportArgumentType]
        )
        trouble = self.measurement.link_trouble
        return replace(found, trouble=(*found.trouble, f"its link: {trouble}")) if trouble else found


def free_bytes(folder: Path) -> dict[str, int]:
    places = {"run folder": folder, "/tmp": Path("/tmp"), "/dev/shm": Path("/dev/shm")}
    return {name: shutil.disk_usage(path).free for name, path in places.items() if path.is_dir()}


def check_node(
    folder: Path,
    config: Config,
    environment: NodeEnvironment,
    seconds: float = LIMIT_SECONDS,
    probes: Probes | None = None,
) -> int:
    """Take part in the preflight of all nodes; returns 0 where every node is fit, 1 where one is not."""
    probes = probes or Probes()
    first = environment.index == 0
    interface = config.cluster.interface
    meeting = meeting_folder(folder, environment.job, os.environ.get("SLURM_RESTART_COUNT", "0"))
    host = _host(folder, config, environment, meeting, seconds) if first else None
    address = host.address if host else own_address(environment.host, interface)
    name = interface or interface_of(address)
    os.environ.update(GLOO_SOCKET_IFNAME=name, NCCL_SOCKET_IFNAME=name)
    guest = Guest(
        folder,
        environment,
        node_name(),
        Link(host.address, [host.server.port], host.server.token)
        if host
        else Link(environment.host, environment.ports, read_token(folder)),
        meeting,
        probes.measurement(probes.package, config.cluster.backend),
        probes,
        time.monotonic(),
        seconds,
    )
    verdict = guest.run()
    if host is not None:
        host.join()
        write_results(folder, host)
        show(host)
    elif verdict is None:
        print(f"preflight: {guest.name} has no answer from {environment.host}: {guest.link.trouble}")
    return EXIT_FIT if verdict is not None and not verdict.bad else EXIT_BAD_NODES


def _host(folder: Path, config: Config, environment: NodeEnvironment, meeting: Path, seconds: float) -> Host:
    for name in (RESULT_NAME, BAD_NODES_NAME):
        (folder / name).unlink(missing_ok=True)
    address = listening_address(environment.host, config.cluster.interface)
    server = LinkServer(address, environment.ports, read_token(folder))
    names = node_names(environment.nodes, os.environ)
    host = Host(server, address, meeting, names, config.cluster.gpus_per_node, seconds)
    host.start()
    return host


def node_name() -> str:
    """As the scheduler calls this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def node_names(nodes: int, variables: Mapping[str, str]) -> dict[int, str]:
    """Of all nodes of the job, as far as the scheduler tells."""
    known = expand_hosts(variables.get("SLURM_JOB_NODELIST", ""))
    return {index: known[index] if index < len(known) else f"node {index}" for index in range(nodes)}


def write_results(folder: Path, host: Host) -> None:
    """`preflight.json`, and where nodes are bad `bad_nodes.txt` and an event."""
    verdict = host.verdict
    assert verdict is not None
    names = unique_names(host.names)
    result = {
        "bad_nodes": verdict.bad,
        "warnings": verdict.warnings,
        "checked": list(names.values()),
        "findings": {names[index]: asdict(found) for index, found in sorted(host.found.items())},
    }
    _write(folder / RESULT_NAME, json.dumps(result, indent=1) + "\n")
    if not verdict.bad:
        return
    # Where all are bad, it is no node's fault: there would be none left to go to.
    if len(verdict.bad) < len(names):
        _write(folder / BAD_NODES_NAME, "".join(f"{name}\n" for name in verdict.bad))
    cause = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in verdict.bad.items())
    EventLog(folder).write("preflight_failed", None, cause=cause, bad_nodes=verdict.bad)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def show(host: Host) -> None:
    """A table on a terminal, else a line a node."""
    console = Console()
    verdict = host.verdict
    assert verdict is not None
    table = Table("node", "clock", "run folder", "device", "speed", "link", "verdict")
    for index, name in unique_names(host.names).items():
        reasons = verdict.bad.get(name) or [f"warning: {text}" for text in verdict.warnings.get(name, [])]
        cells = [name, *_figures(host.found.get(index)), "; ".join(reasons) or "fit"]
        if console.is_terminal:
            table.add_row(*cells, style="red" if name in verdict.bad else "")
        else:
            print("preflight: " + " | ".join(cells), flush=True)
    if console.is_terminal:
        console.print(table)


def _figures(found: Findings | None) -> list[str]:
    if found is None:
        return ["–"] * 5
    return [
        f"{found.clock_seconds:+.3f} s",
        f"{found.free_bytes.get('run folder', 0) / GIB:.0f} GiB free",
        f"{found.devices} × {found.device_kind}" if found.devices else found.device_kind,
        f"{found.matmul_flops / 1e9:.0f} GFLOP/s",
        f"{found.link_bytes / 1e6:.0f} MB/s" if found.link_bytes else "–",
    ]
