"""What a node can find out about its devices and its link, in a thread of its own: any of it may hang."""

import hashlib
import importlib.metadata
import platform
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as distributed

from llmscale.control.preflight import MEASURED, pairings
from llmscale.parallel.extensions import environment_folder

LIBRARIES = ("torch", "deepspeed", "megatron-core", "transformers", "numpy")
MESSAGE_BYTES = 4 * 2**20
REPEATS = 3
GPU_MATRIX, CPU_MATRIX = 4096, 512
MEMORY_TEST = 0.5
"""Part of a GPU's free memory that is written and read back."""


@dataclass(frozen=True)
class World:
    """Where the nodes meet to measure their links."""

    address: str
    port: int
    rank: int
    size: int
    seconds: float
    """For everything."""


@dataclass
class Local:
    """What a node knows without the others."""

    versions: dict[str, str] = field(default_factory=dict)
    devices: int = 0
    device_kind: str = "cpu"
    matmul_flops: float = 0.0
    trouble: list[str] = field(default_factory=list)


class Measurement(threading.Thread):
    """`local` is there once the node has looked at itself; `stage` and `link_bytes` follow `meet(world)`."""

    def __init__(self, package: Path, backend: str) -> None:
        super().__init__(daemon=True)
        self.package = package
        self.backend = backend
        self.local: Local | None = None
        self.stage = 0
        self.link_bytes = 0.0
        self.link_trouble = ""
        self.over = False
        self._worlds: queue.Queue[World] = queue.Queue()

    def meet(self, world: World) -> None:
        self._worlds.put(world)

    def run(self) -> None:
        self.local = look_at_node(self.package)
        world = self._worlds.get()
        try:
            self._measure_link(world)
        except (RuntimeError, OSError, ValueError) as error:
            self.link_trouble = str(error).splitlines()[0]
        self.over = True

    def _measure_link(self, world: World) -> None:
        limit = timedelta(seconds=world.seconds)
        store = distributed.TCPStore(world.address, world.port, timeout=limit)  # pyright: ignore[reportPrivateImportUsage]
        self.stage = 1
        backend = self.backend
        if backend == "auto":
            backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend, store=store, rank=world.rank, world_size=world.size, timeout=limit
        )
        self.stage = 2
        self.link_bytes = link_speed(world.rank, world.size, "cuda" if backend == "nccl" else "cpu")
        self.stage = MEASURED
        distributed.destroy_process_group()


def look_at_node(package: Path) -> Local:
    """Versions and devices of this node."""
    local = Local(versions=versions(package))
    try:
        local.devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        local.device_kind = torch.cuda.get_device_name(0) if local.devices else "cpu"
        for device in range(local.devices):
            check_memory(device)
        local.matmul_flops = matmul_speed()
    except RuntimeError as error:
        local.trouble.append(f"its device fails: {str(error).splitlines()[0]}")
    return local


def versions(package: Path) -> dict[str, str]:
    """Of everything that must be the same on all nodes; `package` is the code that runs."""
    found = {"python": platform.python_version(), "llmscale": code_hash(package)}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "missing"
    operations = sorted(path.parent.name for path in environment_folder().glob("*/*.so"))
    found["compiled operations"] = ", ".join(operations) or "none"
    return found


def code_hash(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def check_memory(device: int) -> None:
    """Write and read back part of a GPU's memory.

    Raises:
        RuntimeError: the driver refuses, or the memory does not hold what was written.
    """
    free, _ = torch.cuda.mem_get_info(device)
    pattern = torch.empty(int(free * MEMORY_TEST) // 4, dtype=torch.int32, device=f"cuda:{device}")
    for value in (0x55555555, -0x55555556):
        pattern.fill_(value)
        if not bool((pattern == value).all()):
            raise RuntimeError(f"memory of GPU {device} does not hold what is written")
    del pattern
    torch.cuda.empty_cache()


def matmul_speed() -> float:
    """Floating point operations a second of one device, the best of a few tries."""
    cuda = torch.cuda.is_available()
    size = GPU_MATRIX if cuda else CPU_MATRIX
    dtype = torch.bfloat16 if cuda else torch.float32
    matrix = torch.ones(size, size, dtype=dtype, device="cuda" if cuda else "cpu")
    best = 0.0
    for _ in range(2 * REPEATS):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def link_speed(rank: int, size: int, device: str) -> float:
    """Bytes a second to and from the fastest of a few other nodes. All nodes call this together."""
    outgoing = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8, device=device)
    incoming = torch.empty_like(outgoing)
    distributed.all_reduce(torch.zeros(1, device=device))
    best = 0.0
    for partners in pairings(size):
        distributed.all_reduce(torch.zeros(1, device=device))
        if rank in partners:
            for _ in range(REPEATS):
                best = max(best, MESSAGE_BYTES / _exchange_seconds(partners[rank], outgoing, incoming))
    return best


def _exchange_seconds(partner: int, outgoing: torch.Tensor, incoming: torch.Tensor) -> float:
    _exchange(partner, outgoing[:1], incoming[:1])
    began = time.perf_counter()
    _exchange(partner, outgoing, incoming)
    return time.perf_counter() - began


def _exchange(partner: int, outgoing: torch.Tensor, incoming: torch.Tensor) -> None:
    operations = [
        distributed.P2POp(distributed.isend, outgoing, partner),
        distributed.P2POp(distributed.irecv, incoming, partner),
    ]
    for work in distributed.batch_isend_irecv(operations):
        work.wait()
    if incoming.is_cuda:
        torch.cuda.synchronize()


def summary(local: Local) -> Mapping[str, object]:
    """As fields of `Findings`."""
    return {
        "versions": local.versions,
        "devices": local.devices,
        "device_kind": local.device_kind,
        "matmul_flops": local.matmul_flops,
        "trouble": tuple(local.trouble),
    }
