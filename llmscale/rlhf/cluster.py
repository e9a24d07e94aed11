"""The Ray that a run's pools live on: the one that its driver is started beside, or one of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from llmscale.rlhf.placement import Node

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 500_000_000


@contextmanager
def connected(cpus: int) -> Iterator[list[Node]]:
    """Connect to the Ray that `RAY_ADDRESS` names, or start one on this machine's loopback interface, which
    ends with this process; gives its nodes.

    The environment must be as `ray_environment.py` makes it since before Ray was imported.

    Args:
        cpus: what a Ray of our own shall count.
    """
    options = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", **options)
    else:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address=LOOPBACK,
            **options,
        )
    try:
        yield _nodes()
    finally:
        ray.shutdown()


def _nodes() -> list[Node]:
    return [
        Node(
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
