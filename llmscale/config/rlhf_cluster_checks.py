"""Rules of a run of reinforcement learning about the machines that its pools are to find (`cluster`)."""

from collections.abc import Iterator

from llmscale.config.problems import Problem
from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config


def nodes_have_a_ray(config: Config) -> Iterator[Problem]:
    cluster = config.cluster
    if config.task == "rlhf" and cluster.kind == "slurm" and cluster.nodes > 1:
        message = (
            "is more than one, and pools on several nodes need a Ray over them: set cluster.kind=ray and "
            "cluster.ray.within=slurm, which starts one inside the allocation"
        )
        yield Problem("cluster.nodes", cluster.nodes, message)


def pools_are_not_elastic(config: Config) -> Iterator[Problem]:
    elastic = config.cluster.elastic
    if config.task == "rlhf" and elastic is not None:
        message = "is of runs whose replicas may get fewer, and pools keep their processes; leave it out"
        yield Problem("cluster.elastic", elastic.min_nodes, message)


def pools_fit_what_is_asked_for(config: Config) -> Iterator[Problem]:
    """An allocation, or this machine's GPUs. What a Ray has that runs already is asked of it."""
    cluster = config.cluster
    if config.task != "rlhf":
        return
    pools = pools_of(config)
    processes = sum(pool.processes for pool in pools.values())
    wanted = f"{processes} processes together ({', '.join(f'{n} {p.processes}' for n, p in pools.items())})"
    own = cluster.ray.address is None and cluster.ray.within == "slurm"
    if cluster.kind == "slurm" or (cluster.kind == "ray" and own):
        room = cluster.nodes * cluster.processes_per_node
        if processes > room:
            message = (
                f"have {wanted}, and cluster.nodes × cluster.processes_per_node = {cluster.nodes} × "
                f"{cluster.processes_per_node} = {room} are asked of SLURM; set cluster.processes_per_node="
                f"{-(-processes // cluster.nodes)}, or let roles share a pool"
            )
            yield Problem("rlhf.pools", ", ".join(pools), message)
    elif cluster.kind == "local" and 0 < cluster.gpus_per_node < processes:
        message = (
            f"have {wanted}, each with a GPU of its own, and cluster.gpus_per_node is "
            f"{cluster.gpus_per_node}; let roles share a pool"
        )
        yield Problem("rlhf.pools", ", ".join(pools), message)


RULES = (nodes_have_a_ray, pools_are_not_elastic, pools_fit_what_is_asked_for)
