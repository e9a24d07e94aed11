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


class Arrivals:
    """Takes the buckets of one version, and gives their tensors when all are there.

    Args:
        shapes: what has to come.
        version: which.
    """

    def __init__(self, shapes: Shapes, version: int) -> None:
        self._shapes, self._version = shapes, version
        self._tensors: dict[str, Tensor] = {}
        self._digests: list[str] = []
        self._count: int | None = None

    def take(self, bucket: Bucket) -> None:
        """
        Raises:
            SyncFailed: it is not the next of this version, or not what was sent.
        """
        if bucket.version != self._version:
            raise SyncFailed(f"weights of version {bucket.version} came in the middle of {self._version}")
        if bucket.number != len(self._digests) or bucket.count != (self._count or bucket.count):
            message = f"bucket {bucket.number} of {bucket.count} came where {len(self._digests)} was next"
            raise SyncFailed(message)
        if digest_of(bucket.tensors, bucket.dtype) != bucket.digest:
            raise SyncFailed(f"bucket {bucket.number} has other values than were sent")
        for name, array in bucket.tensors:
            self._check(name, tuple(array.shape))
            self._tensors[name] = tensor_of(array, bucket.dtype)
        self._count = bucket.count
        self._digests.append(bucket.digest)

    def whole(self) -> tuple[dict[str, Tensor], str]:
        """All tensors by name, and the hash of them all.

        Raises:
            SyncFailed: some are missing.
        """
        missing = [name for name in self._shapes if name not in self._tensors]
        if missing or len(self._digests) != self._count:
            raise SyncFailed(f"{len(missing)} tensors are missing: {_some(missing)}")
        return self._tensors, digest_of_all(self._digests)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._shapes:
            raise SyncFailed(f"{name} is no tensor of this model")
        if name in self._tensors:
            raise SyncFailed(f"{name} came twice")
        if shape != self._shapes[name]:
            raise SyncFailed(f"{name} has the shape {shape} where {self._shapes[name]} is needed")


def digest_of_all(digests: Iterable[str]) -> str:
    """Of all buckets of a version together."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def arrived(buckets: Iterable[Bucket], shapes: Shapes, version: int) -> tuple[dict[str, Tensor], str]:
    """All tensors of a version by name, and the hash of them all.

    Raises:
        SyncFailed: some are missing, or not what was sent.
    """
    arrivals = Arrivals(shapes, version)
    for bucket in buckets:
        arrivals.take(bucket)
    return arrivals.whole()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
