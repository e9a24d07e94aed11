"""What a run asks of a Ray, and whether a Ray has it: plain numbers, for which no Ray is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmscale.config.cluster import ClusterSection
from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config
from llmscale.control.exit_codes import EXIT_BAD_INPUT, EXIT_SAVED

HEAD = "node:__internal_head__"
"""What Ray's head has 1 of, and no other node has any of."""


@dataclass(frozen=True)
class Ask:
    """A bundle of CPUs and GPUs for every node's agent."""

    nodes: int
    cpus: int
    """A node; Ray only counts them, it binds nobody to a core."""
    gpus: int
    """A node."""
    strategy: Literal["STRICT_SPREAD", "PACK"]
    on_head: bool = False
    """On the machine of Ray's head."""

    @property
    def bundle(self) -> dict[str, float]:
        gpus = {"GPU": float(self.gpus)} if self.gpus else {}
        return {"CPU": float(self.cpus)} | gpus | ({HEAD: 0.001} if self.on_head else {})

    def __str__(self) -> str:
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        apart = (
            ", each on a machine of its own" if self.strategy == "STRICT_SPREAD" and self.nodes > 1 else ""
        )
        return f"{nodes} with {_amount(self.cpus, self.gpus)}{' each' if self.nodes > 1 else ''}{apart}"


@dataclass(frozen=True)
class Machine:
    """A node of a Ray that is alive, with all that it has, used or not."""

    id: str
    address: str
    cpus: float
    gpus: float

    def holds(self, ask: Ask) -> int:
        """How many bundles fit when nobody else uses the machine."""
        limits = [self.cpus // ask.cpus] + ([self.gpus // ask.gpus] if ask.gpus else [])
        most = int(min(limits))
        return min(most, 1) if ask.strategy == "STRICT_SPREAD" else most

    def __str__(self) -> str:
        return f"{self.address} with {_amount(self.cpus, self.gpus)}"


def ask_of(cluster: ClusterSection) -> Ask:
    """What `cluster` asks for. Where it names no CPUs: one a rank."""
    return Ask(
        nodes=cluster.nodes,
        cpus=cluster.processes_per_node * (cluster.cpus_per_process or 1),
        gpus=cluster.gpus_per_node,
        strategy="STRICT_SPREAD" if cluster.ray.placement == "spread" else "PACK",
    )


def agents_of(config: Config) -> Ask:
    """What the agents of a run ask for. Of reinforcement learning there is one, whose rank gives orders to
    workers that find places of their own, and computes on no GPU."""
    if config.task != "rlhf":
        return ask_of(config.cluster)
    return Ask(nodes=1, cpus=1, gpus=0, strategy="PACK", on_head=_is_of_the_run(config.cluster))


def _is_of_the_run(cluster: ClusterSection) -> bool:
    """Whether the Ray is started for this run alone, with one CPU more on its head than work needs."""
    return cluster.ray.address is None and cluster.ray.within == "slurm"


def cpus_in_all(config: Config) -> int:
    """CPUs that a Ray must count for the run, on whatever machines."""
    if config.task != "rlhf":
        ask = ask_of(config.cluster)
        return ask.cpus * ask.nodes
    processes = sum(pool.processes for pool in pools_of(config).values())
    return processes * (config.cluster.cpus_per_process or 1) + agents_of(config).cpus


def room(ask: Ask, machines: Sequence[Machine]) -> int:
    """How many of the nodes asked for the machines could hold, were they idle."""
    return sum(machine.holds(ask) for machine in machines)


def shortage(ask: Ask, machines: Sequence[Machine]) -> str:
    """Why a run does not start, and the way out, in plain words."""
    there = "; ".join(str(machine) for machine in machines) or "no machine at all"
    head = f"asked for: {ask}. This Ray has: {there}."
    fits = room(ask, machines)
    if fits >= ask.nodes:
        return f"{head} That would do, but others use it: it starts when they are done."
    ways = ["add machines to this Ray"]
    packed = Ask(ask.nodes, ask.cpus, ask.gpus, "PACK")
    if ask.strategy == "STRICT_SPREAD" and room(packed, machines) >= ask.nodes:
        ways.append("set cluster.ray.placement=pack, which lets nodes share a machine")
    if fits:
        ways.append(f"set cluster.nodes={fits}")
    elif machines:
        ways.append("set cluster.processes_per_node, cpus_per_process or gpus_per_node lower")
    return f"{head} That is room for {fits}. Ways out: {', or '.join(ways)}."


def exit_code_without_place(ask: Ask, machines: Sequence[Machine], placed_before: bool) -> int:
    """What an attempt ends with that found no place until its deadline.

    A Ray that never had enough is bad input; one that is busy, or has lost machines, is worth another try.
    """
    enough = room(ask, machines) >= ask.nodes
    return EXIT_SAVED if enough or placed_before else EXIT_BAD_INPUT


def smaller_sizes(ask: Ask, machines: Sequence[Machine], fewest: int) -> list[int]:
    """Numbers of nodes to try when not all can be had, largest first, down to `fewest`."""
    return list(range(min(room(ask, machines), ask.nodes - 1), fewest - 1, -1))


def _amount(cpus: float, gpus: float) -> str:
    amount = f"{cpus:g} CPU" + ("" if cpus == 1 else "s")
    return amount + (f" and {gpus:g} GPU" + ("" if gpus == 1 else "s") if gpus else "")
