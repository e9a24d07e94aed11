"""Which of a machine's cores a rank computes on, and with how many threads.

Memory of another NUMA node is slower, and Linux keeps a thread's memory where the thread first wrote it: so
ranks are spread over the nodes, each bound to the cores of one. A rank that computes on a GPU belongs to the
node that the GPU is connected to.
"""

import os
from pathlib import Path

import torch

from llmscale.parallel.device import has_cuda
from llmscale.parallel.environment import RankEnvironment

NODES = Path("/sys/devices/system/node")
PCI_DEVICES = Path("/sys/bus/pci/devices")
THREADS = Path("/proc/self/task")


def use_cores(environment: RankEnvironment, threads: int | None, numa_binding: bool) -> int:
    """Give this rank its share of the machine's cores; returns how many threads it has.

    Args:
        threads: None: the cores that this process may use, divided by the ranks of the machine.
        numa_binding: keep the rank on one NUMA node, where `cores_of_rank` knows one.
    """
    ranks = environment.local_world_size
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    if numa_binding:
        nodes = numa_nodes()
        gpu = _node_of_gpu(environment.local_rank) if has_cuda() else None
        cores = nodes.get(gpu) if gpu is not None else cores_of_rank(environment.local_rank, ranks, nodes)
        if cores:
            _bind(cores)
    torch.set_num_threads(threads)
    return threads


def numa_nodes(folder: Path = NODES) -> dict[int, set[int]]:
    """The cores of each node that this process may use; nodes without any are left out."""
    allowed = os.sched_getaffinity(0)
    nodes = {
        int(path.parent.name.removeprefix("node")): _listed(path.read_text()) & allowed
        for path in folder.glob("node[0-9]*/cpulist")
    }
    return {node: nodes[node] for node in sorted(nodes) if nodes[node]}


def cores_of_rank(local_rank: int, ranks: int, nodes: dict[int, set[int]]) -> set[int] | None:
    """Those of the rank's node: ranks that follow each other, which talk most, share one.

    None, for all cores, where there is one node, or the ranks cannot be dealt evenly: fewer of them than
    nodes, or some left over.
    """
    if len(nodes) < 2 or ranks % len(nodes) or local_rank >= ranks:
        return None
    return list(nodes.values())[local_rank * len(nodes) // ranks]


def _listed(text: str) -> set[int]:
    """Of Linux's notation: `0-3,8,10-11`."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return cores


def _node_of_gpu(local_rank: int, folder: Path = PCI_DEVICES) -> int | None:
    """None where the machine does not say."""
    properties = torch.cuda.get_device_properties(local_rank % torch.cuda.device_count())
    place = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    path = folder / place / "numa_node"
    node = int(path.read_text()) if path.exists() else -1
    return node if node >= 0 else None


def _bind(cores: set[int]) -> None:
    """All threads of this process: those that there are, and with them those to come."""
    for thread in THREADS.iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:
            continue  # It has ended meanwhile.
