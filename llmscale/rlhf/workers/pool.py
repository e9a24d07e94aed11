"""A pool: worker processes that Ray has placed, calls of their methods, and another set of them where one of
the first is lost."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.util
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llmscale.rlhf.workers.calls import Calls
from llmscale.rlhf.workers.placement import PoolAsk
from llmscale.rlhf.workers.places import reserve
from llmscale.rlhf.workers.pulse import Pulse
from llmscale.rlhf.workers.team import Team
from llmscale.rlhf.workers.worker import Worker


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    place: float
    """Until a place is free."""
    start: float
    """Until all processes are there, and again until a model is."""
    call: float | None
    """Of a call; None: for ever."""


class Pool:
    """The workers of a pool, placed and joined.

    Args:
        ask: what Ray was asked for.
        group: the place that it gave (`places.py`), which becomes the pool's own.
        variables: of the environment, for every worker.
        run_folder: where workers write their logs and, when they are asked, their stacks.
        limits: of what may take long.

    Raises:
        WorkerLost: a worker ended before it was ready.
    """

    def __init__(
        self,
        ask: PoolAsk,
        group: PlacementGroup,
        variables: Mapping[str, str],
        run_folder: Path,
        limits: Limits,
        pulse: Pulse,
    ) -> None:
        self.ask = ask
        self.group = group
        self._new_team: Callable[[], Team] = lambda: Team(
            ask, variables, run_folder / "stacks" / ask.name, limits.call, pulse
        )
        self.team = self._new_team()
        self._log = run_folder / "logs" / f"worker-{ask.name}"
        self._limits = limits
        self._opened: list[tuple[str, str, Mapping[str, Any]]] = []
        self._workers: list[Any] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def restart(self) -> None:
        """End the workers that are left, place others, and open the same roles in them: only what is in files
        is as it was before.

        They get the places of those before them, or others where a node is gone.

        Raises:
            NoPlace: others have taken what there was. WorkerLost: the new ones did not become ready.
        """
        self._end_workers()
        self.team = self._new_team()
        if not self._has_its_place():
            remove_placement_group(self.group)
            self.group = reserve([self.ask], self._limits.place)[self.ask.name]
        self._start()
        for role, opener, arguments in self._opened:
            self._open(role, opener, arguments).results(self._limits.start)

    def _has_its_place(self) -> bool:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return alive.issuperset(self._placed())

    def _placed(self) -> list[str]:
        """Of each bundle the node that it is on."""
        placed: dict[int, str] = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        return [placed[bundle] for bundle in range(self.ask.processes)]

    def _start(self) -> None:
        remote, directory = ray.remote(Worker), str(Path.cwd())
        for bundle in range(self.ask.processes):
            self._workers.append(
                remote.options(
                    num_cpus=self.ask.cpus,
                    num_gpus=self.ask.gpus,
                    max_restarts=0,
                    runtime_env={"env_vars": dict(self.team.variables)},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, bundle),
                ).remote(directory, f"{self._log}-{bundle}.log", str(self.team.stacks), bundle)
            )
        addresses = self._addresses()
        local_ranks = [addresses[:rank].count(address) for rank, address in enumerate(addresses)]
        (port,) = self._on([0], "host_store", [(addresses[0],)]).results()
        joins: list[tuple[Any, ...]] = []
        for rank, address in enumerate(addresses):
            of_rank = {
                "RANK": rank,
                "WORLD_SIZE": len(addresses),
                "LOCAL_RANK": local_ranks[rank],
                "LOCAL_WORLD_SIZE": addresses.count(address),
                "MASTER_ADDR": addresses[0],
                "MASTER_PORT": port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
            }
            joins.append(({name: str(value) for name, value in of_rank.items()}, address))
        self._on(range(len(addresses)), "join", joins).results()

    def _addresses(self) -> list[str]:
        """Of each worker's node; waits until all have been placed."""
        asked = self._on(range(self.ask.processes), "where", [()] * self.ask.processes)
        found = asked.results(self._limits.start)
        self.team.hosts = [host for host, _ in found]
        self.team.pids = [pid for _, pid in found]
        self.team.nodes = self._placed()
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        return [addresses[node] for node in self.team.nodes]

    def _on(
        self, ranks: Sequence[int], method: str, arguments: Sequence[tuple[Any, ...]], what: str | None = None
    ) -> Calls:
        references = [
            getattr(self._workers[rank], method).remote(*own)
            for rank, own in zip(ranks, arguments, strict=True)
        ]
        return Calls(self.team, list(ranks), references, what or method)

    def open(self, role: str, opener: str, arguments: Mapping[str, Any]) -> Calls:
        """Make a role on every worker, of these and of those that come after them."""
        self._opened.append((role, opener, arguments))
        return self._open(role, opener, arguments)

    def _open(self, role: str, opener: str, arguments: Mapping[str, Any]) -> Calls:
        same = [(role, opener, dict(arguments))] * self.ask.processes
        return self._on(range(self.ask.processes), "open", same, f"the beginning of the {role}")

    def call(self, role: str, method: str, arguments: Sequence[tuple[Any, ...]]) -> Calls:
        """Call a method of a role on every worker, each with arguments of its own."""
        own = [(role, method, *mine) for mine in arguments]
        return self._on(range(self.ask.processes), "call", own, f"{role}.{method}")

    def close(self) -> None:
        """End the workers and give their place back."""
        if self.team.pulse.ray_is_gone:
            return
        self._end_workers()
        remove_placement_group(self.group)

    def _end_workers(self) -> None:
        for worker in self._workers:
            with suppress(ray.exceptions.RayError):
                ray.kill(worker)
        self._workers = []
