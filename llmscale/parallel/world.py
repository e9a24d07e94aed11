"""A World: one layout's process groups and random streams, entered with `with world.active():`.

Megatron's `parallel_state`, DeepSpeed's `groups` and the RNG tracker are module globals. A World owns one
set of their values; entering it puts them in place, leaving it puts the former ones back. Engines of
different layouts can so take turns in the same processes.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from types import FunctionType, ModuleType
from typing import Any

import megatron.core.parallel_state as parallel_state
import megatron.core.tensor_parallel.random as megatron_random
import torch
import torch.distributed
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed import ProcessGroup

from llmscale.parallel import rng
from llmscale.parallel.layout import Coordinates, Layout

_STATEFUL_MODULES: list[ModuleType] = [parallel_state, megatron_random]


def register_stateful_module(module: ModuleType) -> None:
    """Count `module`'s globals among what a World owns. Before the first World is made."""
    if module not in _STATEFUL_MODULES:
        _STATEFUL_MODULES.append(module)
        _PRISTINE.update(_snapshot([module]))


class World:
    """The ranks of one layout, seen from this rank.

    Needs `torch.distributed` to be initialised with exactly `layout.world_size` ranks. Creating a World
    is collective.
    """

    def __init__(
        self, layout: Layout, device: torch.device, timeout: timedelta = timedelta(minutes=30)
    ) -> None:
        ranks = torch.distributed.get_world_size()
        if ranks != layout.world_size:
            raise ValueError(f"the layout is for {layout.world_size} ranks, the process group has {ranks}")
        self.layout = layout
        self.device = device
        self.rank = torch.distributed.get_rank()
        self.coordinates: Coordinates = layout.coordinates(self.rank)
        self.rng = rng.RngTracker()
        self._state: dict[ModuleType, dict[str, Any]] = {}
        outer = _snapshot()
        _restore(_PRISTINE)
        try:
            self._create_groups(timeout)
        finally:
            self._state = _snapshot()
            _restore(outer)

    def _create_groups(self, timeout: timedelta) -> None:
        layout = self.layout
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.interleave if layout.interleave > 1 else None,
            context_parallel_size=layout.context,
            expert_model_parallel_size=layout.expert,
            distributed_timeout_minutes=max(1, int(timeout.total_seconds() // 60)),
            create_gloo_process_groups=False,
        )
        rng.install(self.rng)
        self.groups = ProcessGroupCollection.use_mpu_process_groups()
        self.control_group = _gloo_group(timeout)

    @contextlib.contextmanager
    def active(self) -> Iterator["World"]:
        """Put this World's globals in place; put the former ones back at the end."""
        if not self._state:
            raise RuntimeError("this World is closed")
        outer = _snapshot()
        _restore(self._state)
        try:
            yield self
        finally:
            self._state = _snapshot()
            _restore(outer)

    def close(self) -> None:
        """Give up this World's process groups, those that DeepSpeed made inside it too. Collective; not while
        it is active.

        A group's threads and connections end with the last reference to it: when what was built on this
        World is collected as well. The default group stays, which `disconnect` gives up. Closing twice does
        nothing.
        """
        if not self._state:
            return
        torch.distributed.barrier(self.control_group)  # nobody is still in the middle of a collective
        default = torch.distributed.group.WORLD
        owned = {id(group): group for group in _groups_in([self.control_group, *self._state.values()])}
        self._state = {}
        del self.groups, self.control_group
        for group in owned.values():
            if group is not default:
                torch.distributed.destroy_process_group(group)

    def seed(self, *purpose: int | str) -> None:
        """Seed every random stream for `purpose` (such as seed, step, microbatch)."""
        place = self.coordinates
        shared = rng.derived_seed(*purpose, "data", place.data, "pipeline", place.pipeline)
        own = rng.derived_seed(shared, "tensor", place.tensor)
        rng.seed_all(self.rng, shared, own)

    @property
    def is_first_stage(self) -> bool:
        return self.coordinates.pipeline == 0

    @property
    def is_last_stage(self) -> bool:
        return self.coordinates.pipeline == self.layout.pipeline - 1

    @property
    def tensor_group(self) -> ProcessGroup:
        return self.groups.tp

    @property
    def pipeline_group(self) -> ProcessGroup:
        return self.groups.pp

    @property
    def data_group(self) -> ProcessGroup:
        """The ranks over which gradients are averaged: data × context."""
        return self.groups.dp_cp

    @property
    def model_group(self) -> ProcessGroup:
        """The ranks that hold one replica together: tensor × pipeline."""
        return self.groups.mp

    @property
    def embedding_group(self) -> ProcessGroup | None:
        """First and last pipeline stage, on those two stages."""
        return self.groups.embd if self.is_first_stage or self.is_last_stage else None


def _gloo_group(timeout: timedelta) -> ProcessGroup:
    """All ranks over gloo: for small CPU messages, whatever the tensors travel by."""
    if torch.distributed.get_backend() == "gloo":
        group = torch.distributed.group.WORLD
        assert group is not None
        return group
    created = torch.distributed.new_group(backend="gloo", timeout=timeout)
    assert isinstance(created, ProcessGroup)
    return created


def _groups_in(values: Iterable[Any]) -> Iterator[ProcessGroup]:
    """The process groups among `values`, and in the dictionaries and lists among them."""
    for value in values:
        if isinstance(value, ProcessGroup):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            yield from _groups_in(value.values() if isinstance(value, dict) else value)


def _is_state(name: str, value: Any) -> bool:
    """Module globals that hold state: `_LIKE_THIS`, DeepSpeed's `mpu`, and Megatron's list of all groups."""
    if isinstance(value, (type, ModuleType, FunctionType)):
        return False
    return name in ("mpu", "_global_process_group_list") or (
        name[:1] == "_" and name[1:2].isalpha() and name == name.upper()
    )


def _snapshot(modules: Sequence[ModuleType] = _STATEFUL_MODULES) -> dict[ModuleType, dict[str, Any]]:
    return {
        module: {
            name: dict(value) if type(value) is dict else value
            for name, value in vars(module).items()
            if _is_state(name, value)
        }
        for module in modules
    }


def _restore(state: dict[ModuleType, dict[str, Any]]) -> None:
    for module, values in state.items():
        for name, value in values.items():
            setattr(module, name, value)


_PRISTINE = _snapshot()
