"""Weights on their way: whole tensors by Hugging Face name, some of them at a time, each lot with a hash; and
the one who takes them in.

Nothing here knows who sends, who receives, or by what they travel.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.generic]
Shapes = Mapping[str, tuple[int, ...]]

BITS = {torch.bfloat16: np.uint16}
"""Types that numpy does not have, and what their bits travel as."""
SHOWN = 3
"""Names in a message, at most."""


class SyncFailed(Exception):
    """Weights have not come as they were sent."""


@dataclass(frozen=True)
class Bucket:
    """Some of the tensors of a model."""

    version: int
    """Steps of training that the weights have behind them."""
    number: int
    count: int
    """Buckets of this version."""
    dtype: str
    """Of all tensors, by torch's name. Arrays have the bits of a type that numpy has not."""
    tensors: tuple[tuple[str, Array], ...]
    digest: str
    """Hash of names, shapes, type and values."""

    @classmethod
    def of(
        cls, version: int, number: int, count: int, tensors: Sequence[tuple[str, Tensor]], dtype: torch.dtype
    ) -> "Bucket":
        arrays = tuple((name, array_of(tensor)) for name, tensor in tensors)
        kind = str(dtype).removeprefix("torch.")
        return cls(version, number, count, kind, arrays, digest_of(arrays, kind))

    @property
    def byte_count(self) -> int:
        return sum(array.nbytes for _, array in self.tensors)


def array_of(tensor: Tensor) -> Array:
    """Of a tensor of the host; shares its memory."""
    bits = BITS.get(tensor.dtype)
    return tensor.numpy() if bits is None else tensor.view(torch.uint16).numpy()


def tensor_of(array: Array, dtype: str) -> Tensor:
    """The other way round; a copy, for what comes from elsewhere may not be written to."""
    found = torch.from_numpy(array.copy())
    kind: torch.dtype = getattr(torch, dtype)
    return found.view(kind) if kind in BITS else found


def digest_of(tensors: Iterable[tuple[str, Array]], dtype: str) -> str:
    digest = hashlib.sha256(dtype.encode())
    for name, array in tensors:
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


def dealt(shapes: Shapes, dtype: torch.dtype, most_bytes: int) -> list[list[str]]:
    """Names in the order in which they go, in buckets of at most `most_bytes`; a tensor that is larger has
    one of its own."""
    found: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = dtype.itemsize * int(np.prod(shape))
        if not found or size > room:
            found.append([])
            room = most_bytes
        found[-1].append(name)
        room -= size
    return found


@dataclass(frozen=True)
class Arrived:
    """All tensors of a version."""

    tensors: dict[str, Tensor]
    buckets: tuple[tuple[tuple[str, ...], str], ...]
    """Names and hash of each."""
    dtype: str

    def check(self, held: Mapping[str, Tensor]) -> None:
        """Compare all that a model holds now with what was sent.

        Raises:
            SyncFailed: something is not the same.
        """
        for names, digest in self.buckets:
            arrays = [(name, array_of(held[name].detach().cpu())) for name in names]
            if digest_of(arrays, self.dtype) != digest:
                raise SyncFailed(f"the model does not hold what was sent: {_some(names)}")


def arrived(buckets: Iterable[Bucket], shapes: Shapes, version: int) -> Arrived:
    """Take in all buckets of a version, in their order.

    Args:
        shapes: what has to come.

    Raises:
        SyncFailed: some are missing, or not what was sent.
    """
    tensors: dict[str, Tensor] = {}
    taken: list[Bucket] = []
    for bucket in buckets:
        if bucket.version != version:
            raise SyncFailed(f"weights of version {bucket.version} came in the middle of {version}")
        if bucket.number != len(taken):
            raise SyncFailed(f"bucket {bucket.number} of {bucket.count} came where {len(taken)} was next")
        if digest_of(bucket.tensors, bucket.dtype) != bucket.digest:
            raise SyncFailed(f"bucket {bucket.number} has other values than were sent")
        for name, array in bucket.tensors:
            _check(name, tuple(array.shape), shapes, tensors)
            tensors[name] = tensor_of(array, bucket.dtype)
        taken.append(bucket)
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise SyncFailed(f"{len(missing)} tensors have not come: {_some(missing)}")
    lots = tuple((tuple(name for name, _ in bucket.tensors), bucket.digest) for bucket in taken)
    return Arrived(tensors, lots, taken[0].dtype)


def _check(name: str, shape: tuple[int, ...], shapes: Shapes, tensors: Mapping[str, Tensor]) -> None:
    if name not in shapes:
        raise SyncFailed(f"{name} is no tensor of this model")
    if name in tensors:
        raise SyncFailed(f"{name} came twice")
    if shape != tuple(shapes[name]):
        raise SyncFailed(f"{name} has the shape {shape} where {tuple(shapes[name])} is needed")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
