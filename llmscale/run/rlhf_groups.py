"""The models of a run of reinforcement learning as groups of workers: their pools placed, and each model opened
on every process of its pool."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from llmscale.config.problems import InputError, Problem
from llmscale.config.rlhf_pools import Role
from llmscale.config.rlhf_roles import needed_roles, pool_of, pools_of, role_config
from llmscale.config.schema import Config
from llmscale.parallel.layout import Layout
from llmscale.rlhf.cluster import connected
from llmscale.rlhf.group import Group
from llmscale.rlhf.placement import asks_of, shortage
from llmscale.rlhf.pool import Pool

OPENERS: dict[Role, str] = {
    "actor": "llmscale.run.rlhf_roles:open_actor",
    "critic": "llmscale.run.rlhf_roles:open_critic",
    "reference": "llmscale.run.rlhf_roles:open_reference",
    "reward": "llmscale.run.rlhf_roles:open_reward",
    "rollout": "llmscale.run.rlhf_roles:open_rollout",
}


@contextmanager
def opened_groups(config: Config) -> Iterator[dict[Role, Group]]:
    """All models, each opened on every rank of its pool."""
    cluster = config.cluster
    threads = cluster.threads or 1
    asks = asks_of(pools_of(config), cluster.cpus_per_process or threads, 1 if cluster.gpus_per_node else 0)
    with connected(sum(ask.processes * ask.cpus for ask in asks)) as nodes, ExitStack() as opened:
        problem = shortage(asks, nodes)
        if problem is not None:
            raise InputError([Problem("rlhf.pools", ", ".join(ask.name for ask in asks), problem)])
        variables = {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        pools: dict[str, Pool] = {}
        for ask in asks:
            pools[ask.name] = Pool(ask, variables, cluster.ray.wait_seconds)
            opened.callback(pools[ask.name].close)
        resolved = config.model_dump(mode="json")
        calls = [
            pools[pool_of(config, role)].open(role, OPENERS[role], {"config": resolved})
            for role in needed_roles(config)
        ]
        for call in calls:
            call.results()
        yield {
            role: Group(pools[pool_of(config, role)], role, _layout(config, role))
            for role in needed_roles(config)
        }


def _layout(config: Config, role: Role) -> Layout:
    of_role = role_config(config, role)
    return Layout.of(of_role.parallel, of_role.world_size)
