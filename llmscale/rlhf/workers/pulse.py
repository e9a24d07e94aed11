"""The driver while it waits for its workers: it says that it is alive, and looks whether their Ray is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from llmscale.rlhf.workers.lost import RayLost

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
        if self.ray_is_gone:
            raise RayLost("the Ray of this run is gone: one of its own processes has ended")

    @property
    def ray_is_gone(self) -> bool:
        """Whoever calls it waits a minute, and is ended then."""
        return not all_run(self.servers)

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


def all_run(servers: Sequence[psutil.Process]) -> bool:
    try:
        return all(server.status() != psutil.STATUS_ZOMBIE for server in servers)
    except psutil.NoSuchProcess:
        return False


def _nobody(_: bool) -> None:
    """Nobody listens before the run's hooks are there."""
