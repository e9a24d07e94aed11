"""Where the ranks of a job find each other: a store at the first node, and the interface that leads there."""

import socket
from datetime import timedelta

import psutil
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

LOOPBACK = "127.0.0.1"
STORE_TIMEOUT = timedelta(seconds=300)


def open_store(address: str) -> tuple[TCPStore, int]:
    """A store that listens on `address` and on no other; returns it and its port.

    Every start of the ranks gets one of its own. Ranks that met leftovers of the start before would wait
    for ranks that are gone.
    """
    # TCPStore itself would listen on all interfaces; it takes a socket that is bound already.
    listener = socket.create_server((address, 0), backlog=1024)
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        timeout=STORE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def own_address(host: str, interface: str | None) -> str:
    """Address of this machine under which the machine `host` reaches it.

    Raises:
        RuntimeError: the interface has no IPv4 address.
    """
    if interface is not None:
        return _address_of(interface)
    target = socket.gethostbyname(host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing: it only asks the kernel which way it would go.
        probe.connect((target, 9))
        return probe.getsockname()[0]


def listening_address(host: str, interface: str | None) -> str:
    """Address at which this machine, known as `host`, can be reached by others.

    Debian lets a machine's own name stand for 127.0.1.1, where nobody else finds it; an address that is
    written as a number is taken as it is.
    """
    if interface is not None:
        return _address_of(interface)
    address = socket.gethostbyname(host)
    if host == address or not address.startswith("127."):
        return address
    outside = [
        found.address
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family == socket.AF_INET and not found.address.startswith("127.")
    ]
    return outside[0] if outside else address


def interface_of(address: str) -> str:
    """Name of the interface that has `address`; loopback's for any of 127.0.0.0/8.

    Raises:
        RuntimeError: there is none.
    """
    wanted = LOOPBACK if address.startswith("127.") else address
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == wanted for found in addresses):
            return name
    raise RuntimeError(f"no network interface has the address {address}")


def _address_of(interface: str) -> str:
    for found in psutil.net_if_addrs().get(interface, []):
        if found.family == socket.AF_INET:
            return found.address
    known = ", ".join(psutil.net_if_addrs())
    raise RuntimeError(f"cluster.interface={interface} has no IPv4 address here; there are: {known}")
