"""A pool: worker processes that Ray has placed, and calls of their methods. With `cluster.py` the only place
that knows Ray."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.util
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llmscale.rlhf.placement import PoolAsk
from llmscale.rlhf.worker import Worker

GRACE_SECONDS = 5.0
"""In which it shows who was the first to fail."""


class WorkerLost(Exception):
    """A process of a pool has ended, or does not answer. Its pool has to be started again."""

    def __init__(self, pool: str, rank: int, host: str, cause: str) -> None:
        super().__init__(f"pool {pool}, rank {rank} on {host}: {cause}")
        self.pool = pool
        self.rank = rank
        self.host = host
        self.cause = cause


class WorkerFailed(Exception):
    """A method of a role has raised an error, which is in the message; trying again may not help."""


@dataclass(frozen=True)
class Calls:
    """The same method under way on workers of a pool."""

    pool: "Pool"
    ranks: Sequence[int]
    references: Sequence[Any]
    what: str

    def results(self, seconds: float | None = None) -> list[Any]:
        """What each rank returned, in the order of the ranks.

        Args:
            seconds: how long the slowest may take; None: for ever.

        Raises:
            WorkerLost: a process has ended, or is not done in time. WorkerFailed: it raised an error.
        """
        waiting, deadline = list(self.references), None if seconds is None else time.monotonic() + seconds
        while waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
            if not done:
                late = [self.ranks[self.references.index(reference)] for reference in waiting]
                cause = f"{self.what} is not done after {seconds:.0f} s (waiting: ranks {late})"
                raise self.pool.lost(late[0], cause)
            if self._failure(done[0]) is not None:
                # One that has failed leaves the others waiting for it in a collective, or tears them along.
                ray.wait(self.references, num_returns=len(self.references), timeout=GRACE_SECONDS)
                raise self._first_cause()
        return ray.get(list(self.references))

    def _failure(self, reference: Any) -> Exception | None:
        """Why a call that is done has failed; None where it has not."""
        try:
            ray.get(reference, timeout=0)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            return error
        except ray.exceptions.GetTimeoutError:
            return None
        return None

    def _first_cause(self) -> WorkerLost | WorkerFailed:
        """A process that has ended before errors that its peers have met because of it."""
        failures = {rank: self._failure(one) for rank, one in zip(self.ranks, self.references)}
        for rank, error in failures.items():
            if isinstance(error, ray.exceptions.RayActorError):
                return self.pool.lost(rank, f"has ended during {self.what} ({_first_line(error)})")
        own = {rank: error for rank, error in failures.items() if error is not None}
        causes = {rank: error for rank, error in own.items() if not _is_of_a_peer(error)} or own
        rank, error = next(iter(causes.items()))
        return WorkerFailed(f"{self.what} on {self.pool.of(rank)}: {error}")


def _is_of_a_peer(error: Exception) -> bool:
    """torch tells of a process group whose other end has gone."""
    return any(sign in str(error) for sign in ("gloo/transport", "Connection reset", "NCCL"))


class Pool:
    """The workers of a pool, placed and joined.

    Args:
        ask: what Ray was asked for.
        group: the place that it gave (`places.py`), which becomes the pool's own.
        variables: of the environment, for every worker.

    Raises:
        WorkerLost: a worker ended before it was ready.
    """

    def __init__(self, ask: PoolAsk, group: PlacementGroup, variables: Mapping[str, str]) -> None:
        self.ask = ask
        self.group = group
        self.hosts: list[str] = ["?"] * ask.processes
        self._workers: list[Any] = []
        try:
            self._start(variables)
        except BaseException:
            self.close()
            raise

    def _start(self, variables: Mapping[str, str]) -> None:
        remote, directory = ray.remote(Worker), str(Path.cwd())
        for bundle in range(self.ask.processes):
            self._workers.append(
                remote.options(
                    num_cpus=self.ask.cpus,
                    num_gpus=self.ask.gpus,
                    max_restarts=0,
                    runtime_env={"env_vars": dict(variables)},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, bundle),
                ).remote(directory)
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
        found = self._on(range(self.ask.processes), "where", [()] * self.ask.processes).results()
        self.hosts = [host for host, _ in found]
        self.process_ids = [pid for _, pid in found]
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        placed: dict[int, str] = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        return [nodes[placed[bundle]] for bundle in range(self.ask.processes)]

    def of(self, rank: int) -> str:
        return f"pool {self.ask.name}, rank {rank} on {self.hosts[rank]}"

    def lost(self, rank: int, cause: str) -> WorkerLost:
        return WorkerLost(self.ask.name, rank, self.hosts[rank], cause)

    def _on(self, ranks: Sequence[int], method: str, arguments: Sequence[tuple[Any, ...]]) -> Calls:
        references = [
            getattr(self._workers[rank], method).remote(*own)
            for rank, own in zip(ranks, arguments, strict=True)
        ]
        return Calls(self, list(ranks), references, method)

    def open(self, role: str, opener: str, arguments: Mapping[str, Any]) -> Calls:
        """Make a role on every worker."""
        same = [(role, opener, dict(arguments))] * self.ask.processes
        return self._on(range(self.ask.processes), "open", same)

    def call(self, role: str, method: str, arguments: Sequence[tuple[Any, ...]]) -> Calls:
        """Call a method of a role on every worker, each with arguments of its own."""
        own = [(role, method, *mine) for mine in arguments]
        calls = self._on(range(self.ask.processes), "call", own)
        return Calls(self, calls.ranks, calls.references, f"{role}.{method}")

    def close(self) -> None:
        """End the workers and give their place back."""
        for worker in self._workers:
            with suppress(ray.exceptions.RayError):
                ray.kill(worker)
        remove_placement_group(self.group)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
