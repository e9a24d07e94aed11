"""Whether a Ray that runs already has room for the pools of a run, asked before it is submitted. No torch."""

from collections.abc import Iterator

from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.backends.ray import running_machines

from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale.rlhf.workers.placement import DRIVER, Node, pool_asks, shortage


def check_room(config: Config) -> Iterator[Problem]:
    """What would never fit, were the Ray idle. A busy one is waited for (`cluster.ray.wait_seconds`)."""
    if config.task != "rlhf" or config.cluster.kind != "ray":
        return
    try:
        machines = running_machines(config)
    except SubmitError:
        return  # the backend's own check tells of a Ray that does not answer
    if machines is None:
        return
    nodes = [Node(machine.address, machine.cpus, machine.gpus) for machine in machines]
    asks = pool_asks(config)
    problem = shortage([*asks, DRIVER], nodes)
    if problem is None:
        return
    if config.cluster.ray.address is None:
        problem += "; it was started by an earlier submit, and ends two minutes after its last run"
    yield Problem("rlhf.pools", ", ".join(ask.name for ask in asks), problem)
