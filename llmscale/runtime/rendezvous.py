"""Where the agents of a job meet, and the store in which their ranks find each other."""

import socket
from datetime import timedelta

import psutil
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous import registry as rendezvous_registry

from llmscale.parallel.environment import NodeEnvironment

LOOPBACK = "127.0.0.1"
STORE_TIMEOUT = timedelta(seconds=300)


class LoopbackRendezvous(RendezvousHandler):
    """The meeting of one agent with itself: no other node, no port that other machines could reach.

    Every start of the ranks gets a store of its own. Ranks that met leftovers of the start before would
    wait for ranks that are gone.
    """

    def __init__(self) -> None:
        self.store: TCPStore | None = None

    def get_backend(self) -> str:
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        # TCPStore itself would listen on all interfaces; it takes a socket that is bound already.
        listener = socket.create_server((LOOPBACK, 0), backlog=1024)
        port = listener.getsockname()[1]
        self.store = TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            timeout=STORE_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        return RendezvousInfo(self.store, 0, 1, RendezvousStoreInfo(LOOPBACK, port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could come."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "local"

    def shutdown(self) -> bool:
        self.store = None
        return True


def between_nodes(environment: NodeEnvironment, nodes: int) -> RendezvousHandler:
    """The meeting of `nodes` agents at the endpoint that all of them know."""
    return rendezvous_registry.get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=environment.endpoint,
            run_id=environment.job,
            min_nodes=nodes,
            max_nodes=nodes,
        )
    )


def loopback_interface() -> str:
    """Name of the interface that has 127.0.0.1 (`lo`, or `lo0` on macOS)."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == LOOPBACK for address in addresses):
            return name
    raise RuntimeError(f"no network interface has the address {LOOPBACK}")
