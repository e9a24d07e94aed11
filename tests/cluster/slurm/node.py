"""One node of a test cluster, and the ways in which nodes break and mend."""

from pathlib import Path
from typing import Any

from tests.cluster.slurm.configuration import address
from tests.cluster.slurm.machine import Machine
from tests.cluster.waiting import wait_until

LOCAL_DISKS = ("/tmp/ray",)
"""Folders that each node has for itself, besides /dev/shm; every other one is shared by all."""


class Node:
    """A machine with a cable to the login node and a slurmd."""

    def __init__(self, name: str, login: Machine, folder: Path) -> None:
        self.name = name
        self.address = address(name)
        self.login = login
        self.folder = folder
        self.machine: Machine | None = None

    def start(self) -> None:
        """Switch the node on, or only its slurmd if that is all that is missing."""
        if self.machine is None:
            self.machine = Machine(self.name, self.folder, self.login, LOCAL_DISKS)
            self._connect()
        if not self.slurmd_pid():
            self.run("slurmd", "-N", self.name)

    def run(self, *command: str, **options: Any) -> str:
        """What `command` writes, run on this node.

        Raises:
            AssertionError: it failed.
        """
        assert self.machine, f"{self.name} is off"
        return self.machine.run(*command, **options).stdout

    def stop(self) -> None:
        """slurmd ends in good order; job steps that run here go on."""
        self._end_slurmd("TERM")

    def kill_slurmd(self) -> None:
        self._end_slurmd("KILL")

    def crash(self) -> None:
        """Power loss: the others see silence, not closed connections."""
        self.cut()
        self.switch_off()

    def switch_off(self) -> None:
        """All processes at once; the others see their connections closed."""
        if self.machine is not None:
            self.machine.kill()
            self.machine = None
            # Connections that hang in the air would keep the dead machine's network for minutes.
            self.login.run("ip", "link", "delete", self._port, check=False)

    def cut(self) -> None:
        """Pull the network cable."""
        self._cable("down")

    def heal(self) -> None:
        """Put the network cable back."""
        self._cable("up")

    def cut_from(self, other: "Node") -> None:
        """No packet of this node reaches the `other`; both still reach the login node."""
        self.run("ip", "route", "replace", "blackhole", f"{other.address}/32")

    def heal_from(self, other: "Node") -> None:
        self.run("ip", "route", "del", "blackhole", f"{other.address}/32", check=False)

    def signal(self, number: str, pid: int) -> None:
        """Send a signal to the process that this node knows as `pid`."""
        self.run("kill", f"-{number}", str(pid))

    def pids(self, pattern: str) -> list[int]:
        """Processes of this node whose command line has `pattern`, oldest first."""
        found = self.run("pgrep", "--full", "--", pattern, check=False)
        return [int(line) for line in found.split()]

    def slurmd_pid(self) -> int | None:
        return next(iter(self.pids(f"^slurmd -N {self.name}$")), None)

    def _end_slurmd(self, number: str) -> None:
        if pid := self.slurmd_pid():
            self.signal(number, pid)
            wait_until(lambda: not self.slurmd_pid(), f"slurmd of {self.name} is gone", 20)

    @property
    def _port(self) -> str:
        return f"to-{self.name}"

    def _cable(self, state: str) -> None:
        self.login.run("ip", "link", "set", self._port, state)

    def _connect(self) -> None:
        assert self.machine
        pid = self.machine.pid_within(self.login)
        # The card stays when a node is switched off and on: the others remember it for half a minute.
        card = ":".join(("02:00", *(f"{int(part):02x}" for part in self.address.split("."))))
        self.login.run(
            *("ip", "-batch", "-"),
            input=f"link add {self._port} type veth peer name eth0 address {card} netns {pid}\n"
            f"link set {self._port} master bridge\n"
            f"link set {self._port} up\n",
        )
        self.run(
            *("ip", "-batch", "-"),
            input=f"link set lo up\naddress add {self.address}/16 dev eth0\nlink set eth0 up\n",
        )
