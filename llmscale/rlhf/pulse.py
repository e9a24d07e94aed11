"""The driver while it waits for its workers: it says that it is alive, and looks whether their Ray is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from llmscale.rlhf.lost import RayLost

SECONDS = 1.0
"""Between two beats."""
SERVERS = ("gcs_server", "raylet")
"""Without one of these a Ray of our own does nothing any more, and says so after a minute at best."""


class Pulse:
    """
    Args:
        servers: processes without which there is nothing to wait for.
    """

    def __init__(self, servers: Sequence[psutil.Process] = ()) -> None:
        self.servers = servers
        self.listener: Callable[[bool], None] = _nobody
        """Hears True with every beat, and False when the wait is over."""

    def beat(self) -> None:
        """
        Raises:
            RayLost: a server has ended.
        """
        self.listener(True)
        gone = [server for server in self.servers if not _is_alive(server)]
        if gone:
            raise RayLost(f"the Ray of this run is gone: its {names_of(gone)} has ended")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Call `beat` inside, once every SECONDS."""
        self.beat()
        try:
            yield
        finally:
            self.listener(False)


def own_servers() -> list[psutil.Process]:
    """Those of the Ray that this process has started; none where it uses one that was there."""
    return [child for child in psutil.Process().children() if child.name() in SERVERS]


def names_of(servers: Sequence[psutil.Process]) -> str:
    return " and ".join(f"process {server.pid}" for server in servers)


def _is_alive(server: psutil.Process) -> bool:
    try:
        return server.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _nobody(_: bool) -> None:
    """Nobody listens before the run's hooks are there."""
