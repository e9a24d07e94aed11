"""Where ZeRO keeps master weights and optimizer moments, as pieces of logical tensors.

Each ZeRO stage partitions differently; what comes out is the same: for every parameter the flat range
of it that this rank owns, as a view of live memory. `engine` is DeepSpeed's, whose optimizers have no
common type.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmscale.engine.distance import START
from llmscale.model.parameters import ParameterDeclaration
from llmscale.model.regions import Piece, pieces_of_range

OPTIMIZER_PREFIX = "optimizer."


@dataclass(frozen=True)
class OwnedRange:
    """The flat range of a parameter's masters, from `start` on, that this data-parallel rank owns."""

    start: int
    master: Tensor
    moments: dict[str, Tensor]


def owned_range(engine: Any, parameter: torch.nn.Parameter) -> OwnedRange | None:
    """This rank's part of `parameter`, or None where other ranks own all of it."""
    if engine.zero_optimization_stage() == 0:
        return OwnedRange(0, parameter.detach().view(-1), _moments(engine, parameter, 0, parameter.numel()))
    if engine.zero_optimization_stage() == 3:
        return _partitioned_parameter(engine, parameter)
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    address = mapping.get_hp_fragment_address()
    flat = _flat_masters(engine)[mapping.param_group_index]
    return _cut(engine, flat, address.start, address.numel, mapping.lp_fragment_address.start)


def _flat_masters(engine: Any) -> list[Tensor]:
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        return optimizer.fp32_groups_flat_partition
    return optimizer.single_partition_of_fp32_groups


def _partitioned_parameter(engine: Any, parameter: torch.nn.Parameter) -> OwnedRange | None:
    optimizer = engine.optimizer
    group, offset, chunk = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = chunk * optimizer.dp_process_group.rank()
    length = min(chunk, parameter.ds_numel - start)  # pyright: ignore[reportAttributeAccessIssue]
    if length <= 0:
        return None
    return _cut(engine, optimizer.fp32_partitioned_groups_flat[group], offset, length, start)


def _cut(engine: Any, flat: Tensor, offset: int, length: int, start: int) -> OwnedRange:
    return OwnedRange(start, flat.detach().narrow(0, offset, length), _moments(engine, flat, offset, length))


def _moments(engine: Any, updated: Tensor, offset: int, length: int) -> dict[str, Tensor]:
    return {
        key: value.view(-1).narrow(0, offset, length)
        for key, value in _inner_optimizer(engine).state.get(updated, {}).items()
        if isinstance(value, Tensor) and value.shape == updated.shape
    }


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The one that updates, which ZeRO wraps where it is at work."""
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _updated_tensors(engine: Any) -> list[Tensor]:
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return [p for group in engine.optimizer.param_groups for p in group["params"]]
    return engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else _flat_masters(engine)


def create_optimizer_state(engine: Any) -> None:
    """What the optimizer would create in its first step, so that a load has something to fill."""
    optimizer = _inner_optimizer(engine)
    for updated in _updated_tensors(engine):
        state = optimizer.state[updated]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(updated, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(updated, requires_grad=False)


@torch.no_grad()
def remember_start(engine: Any) -> None:
    """Take the weights as they stand for those that training starts from (`llmscale.engine.distance`)."""
    create_optimizer_state(engine)
    optimizer = _inner_optimizer(engine)
    for updated in _updated_tensors(engine):
        optimizer.state[updated][START] = updated.detach().clone()


def optimizer_steps(engine: Any) -> int:
    """Updates that the moments have seen (skipped steps do not count)."""
    for state in _inner_optimizer(engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def set_optimizer_steps(engine: Any, steps: int) -> None:
    for state in _inner_optimizer(engine).state.values():
        if "step" in state:
            state["step"] = torch.tensor(float(steps))


def parameter_pieces(
    engine: Any, parameter: torch.nn.Parameter, declaration: ParameterDeclaration
) -> Iterator[Piece]:
    """Master weights and moments of `parameter` that this rank owns."""
    owned = owned_range(engine, parameter)
    if owned is None:
        return
    shape, regions = declaration.shape, declaration.regions
    yield from pieces_of_range(owned.master, shape, owned.start, regions)
    for key, moment in owned.moments.items():
        yield from pieces_of_range(moment, shape, owned.start, regions, f"{OPTIMIZER_PREFIX}{key}.")


@torch.no_grad()
def publish_masters(engine: Any) -> None:
    """Make the model compute with the master weights as they stand now. Collective."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return
    if stage < 3:
        optimizer.update_lp_params()
        return
    for low, high in zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat):
        low.data.copy_(high.data)
    if optimizer.persistent_parameters:
        first = optimizer.persistent_parameters[0]
        first.partition(optimizer.persistent_parameters)
        first.all_gather(optimizer.persistent_parameters)
