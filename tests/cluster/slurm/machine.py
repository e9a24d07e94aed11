"""Machines made of Linux namespaces: own network, process ids, host name and mounts, on shared files.

All machines of a cluster lie inside one outer machine, the login node, so that nothing outlives it: neither
processes nor networks, ports or mounts. Each machine ends when the test session that started it does,
however that ends, because its first process reads from a pipe of the session.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.cluster.slurm.packages import search_path

INIT = Path(__file__).with_name("machine.sh")
NAMESPACES = ("--net", "--uts", "--mount", "--pid")
FREE_OF_SLURM = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}


class Machine:
    """One machine; `Machine(...)` returns when it is up.

    Raises:
        RuntimeError: namespaces cannot be made here, with what the system says.
    """

    def __init__(
        self, name: str, folder: Path, within: "Machine | None" = None, disks: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.folder = folder
        self.output = folder / "logs" / f"{name}.machine.log"
        first_process = ["--fork", "--kill-child=KILL", "--mount-proc", str(INIT), name, str(folder), *disks]
        command = ["unshare", *_user_namespace(within), *NAMESPACES, *first_process]
        with self.output.open("a") as errors:
            self.process = subprocess.Popen(
                within.entering(command) if within else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**FREE_OF_SLURM, "PATH": search_path()},
                start_new_session=True,
            )
        assert self.process.stdout
        if self.process.stdout.readline() != b"ready\n":
            self.process.wait()
            raise RuntimeError(
                f"machine {name!r} cannot be made of namespaces (it takes root, or package uidmap and a line "
                f"for this user in /etc/subuid and /etc/subgid):\n{self.output.read_text()}"
            )
        self.first_pid = psutil.Process(self.process.pid).children(recursive=True)[-1].pid
        """The machine's first process, as it is numbered outside of all machines."""

    def entering(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on this machine."""
        user = () if os.geteuid() == 0 else ("--user",)
        enter = ["nsenter", f"--target={self.first_pid}", *user, *NAMESPACES]
        return [*enter, "env", f"--chdir={Path.cwd()}", *command]

    def start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: object
    ) -> "subprocess.Popen[str]":
        """Start `command` here, with `env` added to the variables of this process."""
        environment = {**FREE_OF_SLURM, "PATH": search_path(), **(env or {})}
        return subprocess.Popen(self.entering(command), env=environment, text=True, **options)  # type: ignore[call-overload]

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        check: bool = True,
        seconds: float = 60,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `command` here to its end.

        Raises:
            AssertionError: it failed (unless `check` is off), with what it said.
        """
        result = subprocess.run(
            self.entering(command),
            env={**FREE_OF_SLURM, "PATH": search_path(), **(env or {})},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        said = f"{result.stdout}{result.stderr}"
        assert not check or result.returncode == 0, f"{self.name}: {command} -> {result.returncode}\n{said}"
        return result

    @property
    def is_up(self) -> bool:
        return self.process.poll() is None

    def pid_within(self, machine: "Machine") -> int:
        """Number of this machine's first process on the `machine` around it."""
        status = Path(f"/proc/{self.first_pid}/status").read_text()
        numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
        own = Path(f"/proc/{machine.first_pid}/status").read_text()
        depth = len(next(line.split()[1:] for line in own.splitlines() if line.startswith("NSpid:")))
        return int(numbers[depth - 1])

    def kill(self) -> None:
        """The machine is gone, all its processes at once."""
        if self.is_up:
            psutil.Process(self.first_pid).kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


def _user_namespace(within: Machine | None) -> tuple[str, ...]:
    """An ordinary user becomes root of a user namespace, once, around all machines."""
    return () if within or os.geteuid() == 0 else ("--user", "--map-root-user", "--map-auto")
