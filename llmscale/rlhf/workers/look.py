"""What workers that do not answer are doing: their state and their stacks, from the nodes where they are."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llmscale.control.messages import Evidence
from llmscale.runtime.stacks import collect_evidence

SECONDS = 30.0
"""How long nodes may take to look; one that is gone does not."""


def look_at(
    folder: Path,
    pids: Mapping[str, Mapping[int, int]],
    variables: Mapping[str, str],
    beat: Callable[[], None],
) -> Sequence[Evidence]:
    """Of every process on nodes that answer; none where none does.

    Args:
        folder: where the processes write their stacks.
        pids: node's identity in Ray -> rank -> process.
        variables: of the environment, so that nodes find the code.
        beat: called once a second.
    """
    remote = ray.remote(collect_evidence)
    looks = [
        remote.options(
            num_cpus=0,
            max_retries=0,
            runtime_env={"env_vars": dict(variables)},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(folder, dict(on_node), {})
        for node, on_node in pids.items()
    ]
    waiting, deadline = looks, time.monotonic() + SECONDS
    while waiting and time.monotonic() < deadline:
        beat()
        waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)[1]
    found: list[Evidence] = []
    for look in (look for look in looks if look not in waiting):
        with suppress(ray.exceptions.RayError):
            found += ray.get(look)
    return sorted(found, key=lambda one: one.rank)
