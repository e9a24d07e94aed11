"""The models of a run of reinforcement learning as groups of workers: their pools placed, and each model
opened on every process of its pool."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmscale.config.problems import InputError, Problem
from llmscale.config.rlhf_pools import Role
from llmscale.config.rlhf_roles import needed_roles, pool_of, role_config
from llmscale.config.schema import Config
from llmscale.parallel.layout import Layout
from llmscale.rlhf.workers.cluster import connected, is_on_a_ray
from llmscale.rlhf.workers.group import Group
from llmscale.rlhf.workers.placement import DRIVER, Node, PoolAsk, pool_asks, shortage
from llmscale.rlhf.workers.places import reserve
from llmscale.rlhf.workers.pool import Limits, Pool
from llmscale.rlhf.workers.pulse import Pulse, own_servers
from llmscale.run.committed import committed_step
from llmscale.runtime.events import read_events

OPENERS: dict[Role, str] = {
    "actor": "llmscale.run.rlhf_roles:open_actor",
    "critic": "llmscale.run.rlhf_roles:open_critic",
    "reference": "llmscale.run.rlhf_roles:open_reference",
    "reward": "llmscale.run.rlhf_roles:open_reward",
    "rollout": "llmscale.run.rlhf_roles:open_rollout",
}


@dataclass(frozen=True)
class Opened:
    """All models of a run, ready to be called."""

    groups: Mapping[Role, Group]
    pools: Mapping[str, Pool]
    """By name; groups refer to them."""
    pulse: Pulse
    """Of the driver, while it waits for them."""


@contextmanager
def opened_groups(config: Config) -> Iterator[Opened]:
    """All models, each opened on every rank of its pool."""
    asks = pool_asks(config)
    with connected(sum(ask.processes * ask.cpus for ask in asks)) as nodes, ExitStack() as opened:
        pulse = Pulse(own_servers())
        _check_room(config, asks, nodes)
        cluster = config.cluster
        limits = Limits(cluster.ray.wait_seconds, cluster.watchdog.start_seconds, config.rlhf.call_seconds)
        places = reserve(asks, limits.place)
        pools: dict[str, Pool] = {}
        for ask in asks:
            pool = Pool(ask, places[ask.name], _variables(config), config.run_folder, limits, pulse)
            pools[ask.name] = pool
            opened.callback(pool.close)
        resolved = config.model_dump(mode="json")
        calls = [
            pools[pool_of(config, role)].open(role, OPENERS[role], {"config": resolved})
            for role in needed_roles(config)
        ]
        for call in calls:
            call.results(limits.start)
        groups: dict[Role, Group] = {
            role: Group(pools[pool_of(config, role)], role, _layout(config, role))
            for role in needed_roles(config)
        }
        yield Opened(groups, pools, pulse)


def _check_room(config: Config, asks: Sequence[PoolAsk], nodes: Sequence[Node]) -> None:
    """What never fits is bad input; a run that has had its place waits for nodes to come back.

    Raises:
        InputError: the pools do not fit these nodes, were they idle.
    """
    problem = shortage([*asks, DRIVER] if is_on_a_ray() else asks, nodes)
    if problem is not None and not _had_place(config.run_folder):
        raise InputError([Problem("rlhf.pools", ", ".join(ask.name for ask in asks), problem)])


def _had_place(folder: Path) -> bool:
    restarted = any(event.kind == "restarted" for event in read_events(folder))
    return restarted or committed_step(folder) is not None


def _variables(config: Config) -> dict[str, str]:
    """Of the environment of all workers, wherever Ray has started them."""
    return config.cluster.environment | {
        "OMP_NUM_THREADS": str(config.cluster.threads or 1),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _layout(config: Config, role: Role) -> Layout:
    of_role = role_config(config, role)
    return Layout.of(of_role.parallel, of_role.world_size)
