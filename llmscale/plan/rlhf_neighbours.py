"""Pools that do not fit their devices: which, and what would."""

from collections.abc import Iterator
from typing import Any

from llmscale.config.checks import check_config
from llmscale.config.rlhf_pools import LEARNING, Role
from llmscale.config.rlhf_roles import needed_roles
from llmscale.config.schema import Config
from llmscale.config.tree import set_value
from llmscale.plan.devices import Device
from llmscale.plan.neighbours import SUGGESTIONS
from llmscale.plan.report import bytes_text
from llmscale.plan.rlhf import pool_memories

AT_REST: tuple[Role, ...] = ("reference", "reward", "rollout")
"""Roles whose weights can rest in main memory between two turns."""


def too_large(config: Config, vocabulary_size: int, device: Device) -> Iterator[str]:
    """Of every pool whose processes do not fit the device, in plain words."""
    for memory in pool_memories(config, vocabulary_size):
        if memory.total > device.memory:
            roles = ", ".join(memory.roles)
            yield (
                f"a process of the pool {memory.name} ({roles}) needs {bytes_text(memory.total)} of "
                f"{bytes_text(device.memory)} usable"
            )


def what_fits_pools(config: Config, vocabulary_size: int, device_memory: int) -> list[list[str]]:
    """Up to three sets of overrides, least change first, with which every pool fits the device."""
    found: list[list[str]] = []
    for changes in _candidates(config):
        if len(found) == SUGGESTIONS:
            break
        changed = _apply(config, changes)
        fits = all(one.total <= device_memory for one in pool_memories(changed, vocabulary_size))
        if fits and not check_config(changed):
            found.append([f"{key}={str(value).lower()}" for key, value in changes.items()])
    return found


def _candidates(config: Config) -> Iterator[dict[str, Any]]:
    """What costs little speed by itself, then all of it together, one after the other."""
    needed, roles = needed_roles(config), config.rlhf.roles
    single = [
        {"rlhf.rollout.batch": max(1, config.rlhf.rollout.batch // 4)},
        {"train.micro_batch_size": 1},
        {f"rlhf.roles.{role}.offload": True for role in AT_REST if role in needed},
        {
            f"rlhf.roles.{role}.zero_stage": 3
            for role in LEARNING
            if role in needed and roles.of(role).parallel.pipeline == 1
        },
        {"train.recompute": "full"},
    ]
    offered = [changes for changes in single if changes]
    yield from offered
    together: dict[str, Any] = {}
    for changes in offered:
        together = together | changes
        if together not in offered:
            yield together
    for factor in (2, 4, 8):
        yield _on_more(config, factor)
        yield together | _on_more(config, factor)


def _on_more(config: Config, factor: int) -> dict[str, Any]:
    """Every pool of so many times the processes, which share the models' matrices."""
    pools, roles = config.rlhf.pools, config.rlhf.roles
    processes: dict[str, Any] = {
        f"rlhf.pools.{name}.processes": pool.processes * factor for name, pool in pools.items()
    }
    if not pools:
        processes = {"cluster.processes_per_node": config.cluster.processes_per_node * factor}
    return processes | {
        f"rlhf.roles.{role}.parallel.tensor": roles.of(role).parallel.tensor * factor
        for role in needed_roles(config)
        if role != "rollout"
    }


def _apply(config: Config, changes: dict[str, Any]) -> Config:
    tree = config.model_dump()
    for key, value in changes.items():
        set_value(tree, key, value)
    return Config.model_validate(tree)
