"""One process of a pool, as Ray starts it: it joins its pool's process group, opens the roles that live
there, and does what the driver orders, one order after another.

What a role is made of lies on a higher floor, so the driver names a function that makes it. Nothing here
imports Ray: the driver makes actors of this class.
"""

import os
import socket
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from llmscale.parallel.environment import RankEnvironment
from llmscale.runtime.output import write_to
from llmscale.runtime.rendezvous import interface_of, open_store
from llmscale.runtime.stacks import install_dump


class Worker:
    """Its methods run in the order in which the driver calls them, one at a time.

    Args:
        directory: where relative paths of the config begin.
        log: file that gets what is written to the standard output and error.
        stacks: folder that gets what this process is doing, when it is asked by a signal.
        rank: of the pool.
    """

    def __init__(self, directory: str, log: str, stacks: str, rank: int) -> None:
        os.chdir(directory)
        for folder in (Path(log).parent, Path(stacks)):
            folder.mkdir(parents=True, exist_ok=True)
        write_to(Path(log))
        install_dump(Path(stacks), rank)
        print(f"--- rank {rank} pid {os.getpid()} started {time.strftime('%Y-%m-%d %H:%M:%S')} ---")
        self._roles: dict[str, Any] = {}
        self._store: Any = None

    def where(self) -> tuple[str, int]:
        """Host and process id; who asks knows by the answer that the worker has been placed."""
        return socket.gethostname(), os.getpid()

    def host_store(self, address: str) -> int:
        """Have the store where the pool's ranks meet, at an address of this machine; returns its port."""
        self._store, port = open_store(address)
        return port

    def join(self, variables: Mapping[str, str], address: str) -> None:
        """Become a rank of the pool.

        Args:
            variables: those that torchrun sets.
            address: of this machine, as the others see it.
        """
        interface = interface_of(address)
        os.environ.update({**variables, "GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface})

    def open(self, role: str, opener: str, arguments: Mapping[str, Any]) -> Any:
        """Make a role; returns what it says of itself. Collective over the pool.

        Args:
            opener: `module:function`, called with this rank's environment and `arguments`.
        """
        module, _, function = opener.partition(":")
        made = getattr(import_module(module), function)(RankEnvironment.from_variables(), **arguments)
        self._roles[role] = made
        return made.described()

    def call(self, role: str, method: str, *arguments: Any) -> Any:
        """What a method of a role returns; None of a rank that has nothing to tell."""
        return getattr(self._roles[role], method)(*arguments)
