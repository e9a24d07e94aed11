"""Ranks that ask for more memory than there is."""

import os
import resource
import signal
import time
from pathlib import Path

import torch


def limit_address_space(extra_bytes: int) -> None:
    """As `ulimit -v` does, from what this process has already."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, used + extra_bytes))


def ask_torch() -> int:
    limit_address_space(2**28)
    return len(torch.zeros(2**32))


def ask_python() -> int:
    limit_address_space(2**28)
    return len(bytearray(2**32))


def be_killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def crash() -> int:
    raise ValueError("no such token: 9000")


def eat_in_cgroup(cgroup: str) -> int:
    """Join a cgroup with a limit, and ask for more than it has."""
    (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    eaten = []
    while True:
        eaten.append(b"x" * 2**24)
        time.sleep(0.001)
