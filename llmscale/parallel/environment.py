"""Who this process is in the job: the only reader of the variables that launchers set. No torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RankEnvironment:
    """One rank's place in the world."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0
    nodes: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = 0
    """0: a world of one that nobody has to find."""
    restart_count: int = 0
    """How often the agent has started the ranks again since it began."""

    @classmethod
    def from_variables(cls, variables: Mapping[str, str] = os.environ) -> "RankEnvironment":
        """From torchrun's names (our agent sets them too), else SLURM's, else a world of one.

        Raises:
            ValueError: a variable holds no number, or rank and world size contradict each other.
        """
        world_size = _number(variables, ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"), 1)
        nodes = _number(variables, ("GROUP_WORLD_SIZE", "SLURM_STEP_NUM_NODES"), 1)
        environment = cls(
            rank=_number(variables, ("RANK", "SLURM_PROCID"), 0),
            local_rank=_number(variables, ("LOCAL_RANK", "SLURM_LOCALID"), 0),
            world_size=world_size,
            local_world_size=_number(variables, ("LOCAL_WORLD_SIZE",), max(1, world_size // nodes)),
            node_rank=_number(variables, ("GROUP_RANK", "SLURM_NODEID"), 0),
            nodes=nodes,
            master_address=variables.get("MASTER_ADDR") or _first_slurm_host(variables) or "127.0.0.1",
            master_port=_number(variables, ("MASTER_PORT",), 0),
            restart_count=_number(variables, ("TORCHELASTIC_RESTART_COUNT",), 0),
        )
        if not 0 <= environment.rank < environment.world_size:
            raise ValueError(f"rank {environment.rank} is outside a world of {environment.world_size}")
        return environment


@dataclass(frozen=True)
class NodeEnvironment:
    """Where an agent finds the agents of the other nodes."""

    endpoint: str
    """host:port of the rendezvous, on the first node."""
    job: str
    """What the agents of one job, and of no other, have in common."""

    @classmethod
    def from_variables(cls, variables: Mapping[str, str] = os.environ) -> "NodeEnvironment":
        """`LLMSCALE_RENDEZVOUS` (host:port), else MASTER_ADDR and MASTER_PORT, else SLURM's first node.

        Raises:
            ValueError: none of them says where the first node is.
        """
        host = variables.get("MASTER_ADDR") or _first_slurm_host(variables)
        port = variables.get("MASTER_PORT") or str(_port_of_job(variables.get("SLURM_JOB_ID")))
        endpoint = variables.get("LLMSCALE_RENDEZVOUS") or (f"{host}:{port}" if host else None)
        if endpoint is None:
            raise ValueError("set LLMSCALE_RENDEZVOUS=HOST:PORT (of the first node), or start through SLURM")
        return cls(endpoint, variables.get("SLURM_JOB_ID", "llmscale"))


def _number(variables: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        text = variables.get(name)
        if text:
            try:
                return int(text)
            except ValueError:
                raise ValueError(f"{name}={text!r} is not a number") from None
    return default


def _first_slurm_host(variables: Mapping[str, str]) -> str | None:
    """`node[03-07,9],login1` gives `node03`."""
    hosts = variables.get("SLURM_JOB_NODELIST")
    if not hosts:
        return None
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", hosts)
    return match.group(1) + (match.group(2) or "") if match else None


def _port_of_job(job: str | None) -> int:
    """A port that all nodes of a job agree on without asking, outside the ephemeral range."""
    return 20000 + int(job) % 10000 if job and job.isdigit() else 29400
