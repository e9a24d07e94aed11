"""Which pools a run has, what they ask of a Ray, and whether it has it: plain numbers, no Ray needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmscale.config.rlhf_pools import PoolSection
from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config


@dataclass(frozen=True)
class PoolAsk:
    """A pool as Ray is asked for it: one bundle a process."""

    name: str
    roles: tuple[str, ...]
    processes: int
    cpus: int
    """A process; Ray only counts them."""
    gpus: int
    """A process: 0 or 1."""
    strategy: str
    """Ray's word: PACK or SPREAD."""

    @property
    def bundles(self) -> list[dict[str, float]]:
        one = {"CPU": float(self.cpus)} | ({"GPU": float(self.gpus)} if self.gpus else {})
        return [one] * self.processes

    def __str__(self) -> str:
        each = f"{self.cpus} CPU{'' if self.cpus == 1 else 's'}" + (
            f" and {self.gpus} GPU" if self.gpus else ""
        )
        roles = f" ({', '.join(self.roles)})" if self.roles else ""
        return f"{self.name}{roles}: {self.processes} × {each}"


DRIVER = PoolAsk("driver", (), 1, 1, 0, "PACK")
"""What gives the orders, on a Ray that is there already. Beside one of its own it takes no place on it."""


def pool_asks(config: Config) -> list[PoolAsk]:
    """What the pools of a run ask for. Where the config names no CPUs: one a process."""
    cluster = config.cluster
    return asks_of(pools_of(config), cluster.cpus_per_process or 1, 1 if cluster.gpus_per_node else 0)


def asks_of(pools: Mapping[str, PoolSection], cpus: int, gpus: int) -> list[PoolAsk]:
    """What all pools ask for.

    Args:
        cpus: a process.
        gpus: a process.
    """
    return [
        PoolAsk(name, tuple(pool.roles), pool.processes, cpus, gpus, pool.placement.upper())
        for name, pool in pools.items()
    ]


@dataclass(frozen=True)
class Node:
    """A node of a Ray that is alive."""

    address: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.address} with {self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


def shortage(asks: Sequence[PoolAsk], nodes: Sequence[Node]) -> str | None:
    """Why the pools do not fit an idle Ray of these nodes, in plain words; None where they do.

    A process must fit one node; a pool may lie on several. Bundles of all pools are alike but for their size,
    so that the largest first, each where there is most room, finds a place whenever there is one.
    """
    room = [[node.cpus, node.gpus] for node in nodes]
    for ask in sorted(asks, key=lambda one: (-one.gpus, -one.cpus)):
        for _ in range(ask.processes):
            fitting = [place for place in room if place[0] >= ask.cpus and place[1] >= ask.gpus]
            if not fitting:
                return _explained(asks, nodes)
            best = max(fitting, key=lambda place: (place[1], place[0]))
            best[0] -= ask.cpus
            best[1] -= ask.gpus
    return None


def _explained(asks: Sequence[PoolAsk], nodes: Sequence[Node]) -> str:
    there = "; ".join(map(str, nodes)) or "no node at all"
    cpus = sum(ask.processes * ask.cpus for ask in asks)
    gpus = sum(ask.processes * ask.gpus for ask in asks)
    total = f"{cpus} CPUs" + (f" and {gpus} GPUs" if gpus else "")
    return (
        f"the pools ask for {total} together ({'; '.join(map(str, asks))}), and this Ray has: {there}. "
        "Give pools fewer processes, let roles share a pool (rlhf.pools), or add nodes"
    )
