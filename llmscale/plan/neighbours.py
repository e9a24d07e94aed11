"""Configs near one that does not fit: what would."""

from collections.abc import Iterator
from typing import Any

from llmscale.config.checks import check_config
from llmscale.config.schema import Config
from llmscale.plan.memory import fullest_rank

SUGGESTIONS = 3


def what_fits(config: Config, vocabulary_size: int, device_memory: int) -> list[list[str]]:
    """Up to three sets of overrides, least change first, with which the fullest rank fits the device."""
    found: list[list[str]] = []
    for changes in _candidates(config):
        if len(found) == SUGGESTIONS:
            break
        # A change that only adds to one already found says nothing new.
        if any(set(smaller) <= set(_overrides(changes)) for smaller in found):
            continue
        changed = _apply(config, changes)
        if not check_config(changed) and fullest_rank(changed, vocabulary_size)[1].total <= device_memory:
            found.append(_overrides(changes))
    return found


def _candidates(config: Config) -> Iterator[dict[str, Any]]:
    """From what costs least speed to what costs most machines."""
    memory_only = list(_same_layout(config))
    yield from memory_only
    for layout in _same_world(config):
        for changes in [{}, *memory_only]:
            yield layout | changes
    full = {"train.recompute": "full"}
    for factor in (2, 4, 8, 16, 32, 64, 128, 256):
        nodes = {"cluster.nodes": config.cluster.nodes * factor}
        batch = config.train.global_batch_size
        for layout in [{}, *_same_world(_apply(config, nodes))]:
            changes = nodes | layout
            unit = config.train.micro_batch_size * max(_apply(config, changes).data_parallel, 1)
            # More replicas than sequences: the batch must grow too.
            grown = {"train.global_batch_size": -(-batch // unit) * unit} if batch % unit else {}
            yield changes | grown
            yield changes | grown | full


def _same_layout(config: Config) -> Iterator[dict[str, Any]]:
    zero: list[dict[str, Any]] = [{}]
    if config.parallel.pipeline == 1:
        zero += [{"zero.stage": stage} for stage in (2, 3) if stage > config.zero.stage]
    micro = config.train.micro_batch_size
    sizes: list[dict[str, Any]] = [{}, *({"train.micro_batch_size": size} for size in _halves(micro))]
    recompute: list[dict[str, Any]] = (
        [{}] if config.train.recompute == "full" else [{}, {"train.recompute": "full"}]
    )
    sequence: list[dict[str, Any]] = [{}]
    if config.parallel.tensor > 1 and not config.parallel.sequence:
        sequence.append({"parallel.sequence": True})
    every = [s | m | z | r for r in recompute for z in zero for m in sizes for s in sequence]
    yield from sorted((changes for changes in every if changes), key=len)


def _same_world(config: Config) -> Iterator[dict[str, Any]]:
    """Other tensor and pipeline sizes on the same ranks; tensor ranks stay within a node."""
    parallel = config.parallel
    for ranks in _powers_of_two(config.world_size):
        for tensor in _powers_of_two(min(ranks, config.cluster.processes_per_node)):
            pipeline = ranks // tensor
            if (
                tensor < parallel.tensor
                or pipeline < parallel.pipeline
                or (tensor, pipeline)
                == (
                    parallel.tensor,
                    parallel.pipeline,
                )
            ):
                continue
            changes: dict[str, Any] = {}
            if tensor != parallel.tensor:
                changes["parallel.tensor"] = tensor
            if pipeline != parallel.pipeline:
                changes["parallel.pipeline"] = pipeline
                if config.zero.stage > 1:
                    changes["zero.stage"] = 1
            yield changes


def _halves(size: int) -> Iterator[int]:
    while size > 1:
        size //= 2
        yield size


def _powers_of_two(limit: int) -> Iterator[int]:
    power = 1
    while power <= limit:
        yield power
        power *= 2


def _apply(config: Config, changes: dict[str, Any]) -> Config:
    tree = config.model_dump()
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    return Config.model_validate(tree)


def _overrides(changes: dict[str, Any]) -> list[str]:
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items()
    ]
