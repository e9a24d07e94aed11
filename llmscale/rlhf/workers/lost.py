"""Why a call of a pool has no result."""

from collections.abc import Sequence
from typing import Any


class WorkerLost(Exception):
    """A process of a pool has ended, or does not answer. Its pool has to be started again.

    Args:
        roles: those that live in the pool.
        cause: "has ended during actor.generate: ..."
    """

    def __init__(self, pool: str, roles: Sequence[str], rank: int, host: str, cause: str) -> None:
        super().__init__(f"{' and '.join(roles)} (pool {pool}), rank {rank} on {host}: {cause}")
        self.pool = pool
        self.roles = tuple(roles)
        self.rank = rank
        self.host = host
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerLost, (self.pool, self.roles, self.rank, self.host, self.cause)


class WorkerFailed(Exception):
    """A method of a role has raised an error, which is in the message; trying again may not help."""


class RayLost(Exception):
    """The Ray that all pools live on has ended."""
