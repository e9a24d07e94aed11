"""The Ray that a run's pools live on: the one that its driver is started beside, or one of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import llmscale
from llmscale.rlhf.workers.placement import Node
from llmscale.rlhf.workers.pulse import all_run, own_servers
from llmscale.runtime import stop_signal

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
    with _in_folder_of_code():
        _connect(cpus)
    servers = own_servers()
    # Ray has put a handler of its own there, which would end this process at once.
    stop_signal.install()
    try:
        yield _nodes()
    finally:
        # Without its servers that would not end; what is left of them ends with this process.
        if all_run(servers):
            ray.shutdown()


def is_on_a_ray() -> bool:
    """Whether this process was started on a Ray, which is there for others too."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _connect(cpus: int) -> None:
    options = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if is_on_a_ray():
        ray.init(address="auto", **options)
        return
    _leave_group()
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=LOOPBACK,
        **options,
    )


def _leave_group() -> None:
    """What a terminal or a supervisor sends to all processes of a group would end Ray's servers, too, before
    the run can save. This process hears of it from its agent."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


@contextmanager
def _in_folder_of_code() -> Iterator[None]:
    """Ray has all workers look for modules where this process stands when it connects, before anywhere else:
    the code that this process runs from, not a checkout that may have changed since."""
    before = Path.cwd()
    os.chdir(Path(llmscale.__file__).parents[1])
    try:
        yield
    finally:
        os.chdir(before)


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
