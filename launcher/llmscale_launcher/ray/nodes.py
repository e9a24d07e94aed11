"""The nodes of a run on a Ray: a bundle of resources and an actor for each. Needs a connected Ray."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from llmscale_launcher.ray.actor import AgentStart, NodeActor, free_port
from llmscale_launcher.ray.placement import Ask, Machine

CALLS_AT_ONCE = 4
"""Of an actor: its one long call, and signals beside it."""


@dataclass
class _Slot:
    """A node of the run and who works there now."""

    actor: Any
    where: Any
    """Reference to the name of the machine, once it has been placed."""
    ended: Any
    """Reference to the exit code that `NodeActor.run` returns."""
    machine: str | None
    """Where it was put by name; None: where its bundle is."""


@dataclass(frozen=True)
class AgentEnd:
    """How the agent of a node ended."""

    node: int
    exit_code: int | None
    """Negative for a signal; None where its machine, or Ray's own process on it, died."""
    reason: str


class RayNodes:
    """Places the agents of one attempt, and hears how they end."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self._group: Any = None
        self._size = 0
        self._slots: dict[int, _Slot] = {}

    def connect(self) -> None:
        """To the Ray that this process is a job of."""
        _ray().init(log_to_driver=False, logging_level=logging.WARNING)

    def own_address(self) -> str:
        """Of the machine that this process runs on, as the others reach it."""
        return str(_ray().util.get_node_ip_address())

    def ray_address(self) -> str:
        """HOST:PORT by which other processes find this Ray."""
        return str(_ray().get_runtime_context().gcs_address)

    def reserve(self, nodes: int) -> None:
        """Ask for bundles for the first `nodes` nodes; an earlier wish is taken back."""
        self._release()
        bundles = [self.ask.bundle] * nodes
        self._group = _ray().util.placement_group(bundles, strategy=self.ask.strategy)
        self._size = nodes

    def is_reserved(self, seconds: float) -> bool:
        """Whether the bundles are ours, after waiting for at most `seconds`."""
        return bool(self._group.wait(timeout_seconds=seconds))

    def machines(self) -> list[Machine]:
        """The machines of this Ray that are alive."""
        return [
            Machine(
                id=node["NodeID"],
                address=node["NodeManagerAddress"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
            )
            for node in _ray().nodes()
            if node["Alive"]
        ]

    def first_endpoint(self) -> str:
        """HOST:PORT at which the first node can listen, and the others reach it."""
        strategy = _strategies().PlacementGroupSchedulingStrategy(self._group, 0)
        asked = _ray().remote(free_port).options(num_cpus=0, scheduling_strategy=strategy).remote()
        machine = self._machine_of_bundle()[0]
        address = next(one.address for one in self.machines() if one.id == machine)
        return f"{address}:{_ray().get(asked)}"

    def start(self, node: int, start: AgentStart) -> None:
        """Put an agent onto `node`'s bundle. Waits for the bundle where its machine has been lost."""
        strategy = _strategies().PlacementGroupSchedulingStrategy(self._group, node)
        self._put(node, start, strategy, None)

    def start_on(self, machine: str, node: int, start: AgentStart) -> None:
        """Put an agent onto a machine that has none of this run's bundles."""
        strategy = _strategies().NodeAffinitySchedulingStrategy(machine, soft=False)
        self._put(node, start, strategy, machine)

    def unoccupied(self) -> list[Machine]:
        """Machines that could hold a node and have none of this run."""
        by_name = (slot.machine for slot in self._slots.values())
        taken = {*self._machine_of_bundle().values(), *by_name}
        return [one for one in self.machines() if one.holds(self.ask) and one.id not in taken]

    @property
    def without_agent(self) -> list[int]:
        """Nodes of the run that have no agent."""
        return [node for node in range(self.ask.nodes) if node not in self._slots]

    @property
    def have_agents(self) -> bool:
        """Whether any agent runs, or waits for its bundle."""
        return bool(self._slots)

    def placed(self) -> list[int]:
        """Nodes whose agent has found its machine, and has not been told to have ended."""
        where = {slot.where: node for node, slot in self._slots.items()}
        if not where:
            return []
        ready, _ = _ray().wait(list(where), num_returns=len(where), timeout=0)
        return [where[reference] for reference in ready]

    @property
    def bundles(self) -> range:
        """The nodes that have a bundle."""
        return range(self._size)

    def poll(self, seconds: float) -> list[AgentEnd]:
        """Agents that have ended, each told once; waits for the first for at most `seconds`."""
        by_reference = {slot.ended: node for node, slot in self._slots.items()}
        if not by_reference:
            time.sleep(seconds)
            return []
        done, _ = _ray().wait(list(by_reference), timeout=seconds)
        ends = [_ending(by_reference[reference], reference) for reference in done]
        for end in ends:
            _ray().kill(self._slots.pop(end.node).actor)
        return ends

    def send(self, number: int) -> None:
        """Pass a signal on to every agent."""
        for slot in self._slots.values():
            slot.actor.send.remote(number)

    def close(self) -> None:
        """End what is left, at once."""
        for slot in self._slots.values():
            _ray().kill(slot.actor)
        self._slots.clear()
        self._release()

    def _put(self, node: int, start: AgentStart, strategy: Any, machine: str | None) -> None:
        make = (
            _ray()
            .remote(NodeActor)
            .options(
                num_cpus=self.ask.cpus,
                num_gpus=self.ask.gpus,
                max_concurrency=CALLS_AT_ONCE,
                max_restarts=0,
                scheduling_strategy=strategy,
            )
        )
        actor = make.remote()
        self._slots[node] = _Slot(actor, actor.where.remote(), actor.run.remote(start), machine)

    def _machine_of_bundle(self) -> dict[int, str]:
        return dict(_ray().util.placement_group_table(self._group)["bundles_to_node_id"])

    def _release(self) -> None:
        if self._group is not None:
            _ray().util.remove_placement_group(self._group)
            self._group = None


def _ending(node: int, reference: Any) -> AgentEnd:
    errors = _ray().exceptions
    try:
        code = int(_ray().get(reference))
    except errors.RayActorError as error:
        return AgentEnd(node, None, str(error).strip().splitlines()[0])
    except errors.RayError as error:
        return AgentEnd(node, 1, f"could not start its agent: {str(error).strip().splitlines()[-1]}")
    return AgentEnd(node, code, f"exit code {code}")


def _ray() -> Any:
    """Ray itself: optional, large, and without types worth the name."""
    import ray  # noqa: PLC0415

    return ray


def _strategies() -> Any:
    import ray.util.scheduling_strategies as strategies  # noqa: PLC0415

    return strategies
