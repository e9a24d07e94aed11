"""Who this process is in the job: the only reader of the variables that launchers set. No torch."""

import os
import re
import zlib
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
    """One agent's place among the nodes of a job, and where it finds the others."""

    index: int
    """The node's place, as the scheduler numbers them."""
    nodes: int
    """Nodes of the job."""
    host: str
    """Where the coordinator listens."""
    ports: tuple[int, ...]
    """At which ports it may be found."""
    has_coordinator: bool
    """Whether this node's agent has the coordinator in its own process."""
    job: str
    """What the agents of one job, and of no other, have in common."""

    @classmethod
    def from_variables(cls, variables: Mapping[str, str] = os.environ) -> "NodeEnvironment":
        """From `LLMSCALE_*`, else MASTER_ADDR and MASTER_PORT, else SLURM's variables.

        `LLMSCALE_COORDINATOR` (host:port) is a coordinator in a process of its own, `LLMSCALE_RENDEZVOUS`
        (host:port) one in the first node's agent; `LLMSCALE_NODE`, `LLMSCALE_NODES` and `LLMSCALE_JOB` say
        who this is.

        Raises:
            ValueError: there are several nodes, and nothing says where the first is.
        """
        index = _number(variables, ("LLMSCALE_NODE", "SLURM_NODEID", "GROUP_RANK"), 0)
        nodes = _number(variables, ("LLMSCALE_NODES", "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES"), 1)
        job = variables.get("LLMSCALE_JOB") or variables.get("SLURM_JOB_ID") or "local"
        apart = variables.get("LLMSCALE_COORDINATOR")
        endpoint = apart or variables.get("LLMSCALE_RENDEZVOUS")
        if endpoint is None and variables.get("MASTER_ADDR"):
            endpoint = f"{variables['MASTER_ADDR']}:{variables.get('MASTER_PORT', FIRST_PORT)}"
        if endpoint is not None:
            host, _, port = endpoint.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"{endpoint!r} is not HOST:PORT")
            ports = (int(port),)
        else:
            host, ports = _first_slurm_host(variables) or "", ports_of_job(job)
            if nodes > 1 and not host:
                raise ValueError(
                    "set LLMSCALE_RENDEZVOUS=HOST:PORT (of the first node), or start through SLURM"
                )
        return cls(index, nodes, host or "127.0.0.1", ports, apart is None and index == 0, job)


FIRST_PORT = 20000
PORTS_A_JOB = 16


def ports_of_job(job: str) -> tuple[int, ...]:
    """Ports that all nodes of a job agree on without asking, below the ephemeral range. Jobs whose ids follow
    each other get others, and of one job's the first that is free is taken."""
    number = int(job) if job.isdigit() else zlib.crc32(job.encode())
    first = FIRST_PORT + number * PORTS_A_JOB % 10000
    return tuple(range(first, first + PORTS_A_JOB))


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
