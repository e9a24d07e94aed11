"""The weight stream: an actor's weights as whole tensors by Hugging Face name, some of them at a time, for
those who write with a copy of them.

The region tables say which rank has which box of a tensor. One rank speaks for all; the others of its replica
send it their boxes, lot after lot, so that nobody holds more of the model than its own part and one lot. What
LoRA has trained is merged, with the arithmetic of an export.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from llmscale.checkpoint.manifest import TensorEntry
from llmscale.checkpoint.merged import MergedTensors
from llmscale.checkpoint.shards import DTYPE_NAMES
from llmscale.checkpoint.tensor_files import TensorSource
from llmscale.config.tuning import NOT_WEIGHTS
from llmscale.engine.engine import Engine
from llmscale.engine.forward import telling_rank
from llmscale.model.regions import Box, Region
from llmscale.model.tensors import hugging_face_shapes
from llmscale.rlhf.rollout.buckets import Bucket, Shapes, dealt

BUCKET_BYTES = 64 << 20


def weight_shapes(engine: Engine) -> Shapes:
    """Name and shape of each tensor of the stream, in its order."""
    positions = engine.chunks[0].max_sequence_length
    return hugging_face_shapes(engine.config.model, engine.vocabulary_size, positions)


def buckets(engine: Engine, most_bytes: int = BUCKET_BYTES) -> Iterator[Bucket | None]:
    """The weights as they stand. Collective over all ranks of the actor, each of which gets as many: the
    buckets where `engine.forward.telling_rank` of the first replica is, None elsewhere.

    Args:
        most_bytes: of a bucket; a tensor that is larger has one of its own.

    Raises:
        ValueError: the model is tuned in a way that its weights do not tell.
    """
    method = engine.config.peft.method
    if method in NOT_WEIGHTS:
        raise ValueError(f"peft.method = {method} {NOT_WEIGHTS[method]}")
    shapes, dtype = weight_shapes(engine), engine.chunks[0].config.params_dtype
    gathering = _Gathering(engine)
    added = {name: shape for name, shape in gathering.shapes.items() if name not in shapes}
    trained: dict[str, Tensor] = {}
    for names in dealt(added, dtype, most_bytes):
        trained |= gathering.tensors(names)
    lots = dealt(shapes, dtype, most_bytes)
    for number, names in enumerate(lots):
        whole = gathering.tensors(names)
        if not gathering.speaks:
            yield None
            continue
        if trained:
            whole = _merged(engine, whole, trained)
        tensors = [(name, whole[name]) for name in names]
        yield Bucket.of(engine.steps_done, number, len(lots), tensors, dtype)


@dataclass(frozen=True)
class _Held:
    """A box of a tensor, and the parameter of this rank that has it."""

    parameter: torch.nn.Parameter
    region: Region

    def values(self) -> Tensor:
        """Flat; the parameter is whole."""
        local = self.parameter.detach()[self.region.local.slices]
        return (local.t() if self.region.transpose else local).reshape(-1)


class _Gathering:
    """Makes whole tensors on the rank that speaks. Making one is collective.

    Every element of a tensor is sent once, by the rank that would write it into a checkpoint.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._world = world = engine.world
        parameters = dict(engine.module.named_parameters())
        self._held = [
            _Held(parameters[name], region)
            for name, declaration in engine.declarations.items()
            if declaration.is_written_by(world.coordinates.tensor)
            for region in declaration.regions
        ]
        group = world.model_group
        self._is_first_replica = world.coordinates.data == world.coordinates.context == 0
        self.speaks = self._is_first_replica and world.rank == telling_rank(world)
        self._speaker = torch.distributed.get_group_rank(group, telling_rank(world))
        own = [(held.region.name, held.region.shape, held.region.box) for held in self._held]
        self._boxes: list[list[tuple[str, tuple[int, ...], Box]]] = [[] for _ in range(group.size())]
        """Of each rank of the replica: name and shape of the tensor, and which box of it."""
        torch.distributed.all_gather_object(self._boxes, own, group=group)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape for boxes in self._boxes for name, shape, _ in boxes
        }

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Whole ones by name, in the host's memory, where this rank speaks; nothing elsewhere."""
        wanted = set(names)
        held = [one for one in self._held if one.region.name in wanted]
        with self._engine.whole_parameters(one.parameter for one in held):
            if not self._is_first_replica:
                return {}
            own = torch.cat([one.values() for one in held]) if held else None
        return self._joined(names, wanted, own)

    def _joined(self, names: Sequence[str], wanted: set[str], own: Tensor | None) -> dict[str, Tensor]:
        group = self._world.model_group
        if not self.speaks:
            if own is not None:
                torch.distributed.send(own, group=group, group_dst=self._speaker)
            return {}
        whole: dict[str, Tensor] = {}
        for rank, boxes in enumerate(self._boxes):
            coming = [(name, box) for name, _, box in boxes if name in wanted]
            if not coming:
                continue
            sizes = [math.prod(box.size) for _, box in coming]
            values = own
            if rank != group.rank():
                values = torch.empty(
                    sum(sizes), dtype=self._held[0].parameter.dtype, device=self._world.device
                )
                torch.distributed.recv(values, group=group, group_src=rank)
            assert values is not None
            for (name, box), part in zip(coming, values.cpu().split(sizes), strict=True):
                if name not in whole:
                    whole[name] = torch.empty(self.shapes[name], dtype=values.dtype)
                whole[name][box.slices] = part.view(box.size)
        return {name: whole[name] for name in names}


class _InMemory(TensorSource):
    """Tensors of a dictionary."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._values = tensors
        self.tensors = {
            name: TensorEntry.model_validate(
                {"shape": tuple(tensor.shape), "dtype": DTYPE_NAMES[tensor.dtype], "boxes": ()}
            )
            for name, tensor in tensors.items()
        }

    def slabs(self, name: str, box: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        tensor = self._values[name]
        box = box or Box((0,) * tensor.dim(), tuple(tensor.shape))
        yield box, tensor[box.slices].clone()


def _merged(engine: Engine, base: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors with what was trained beside them."""
    config = engine.config
    merged = MergedTensors(
        _InMemory(base), _InMemory(trained), config.peft, config.model, engine.vocabulary_size
    )
    return {name: merged.whole(name).to(tensor.dtype) for name, tensor in base.items()}
