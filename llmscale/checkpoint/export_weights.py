"""Weights as transformers loads them: safetensors files of at most a given size, and their index.

What is written depends on the tensors alone, not on how the source stores them.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmscale.checkpoint.files import write_new
from llmscale.checkpoint.huggingface_folder import INDEX, SINGLE
from llmscale.checkpoint.manifest import DTYPE_BYTES
from llmscale.checkpoint.shards import ALIGNMENT, DTYPE_NAMES, memory_of
from llmscale.checkpoint.tensor_files import TensorSource
from llmscale.config.problems import InputError, Problem

Shapes = Mapping[str, tuple[int, ...]]
OnBytes = Callable[[int], None]
"""Told how many bytes more have been written."""


@dataclass(frozen=True)
class File:
    name: str
    tensors: tuple[str, ...]


def write_weights(
    source: TensorSource,
    shapes: Shapes,
    folder: Path,
    dtype: torch.dtype,
    max_file_bytes: int,
    on_bytes: OnBytes,
) -> None:
    """Write the tensors that `shapes` names into `folder`, rounded to `dtype`.

    A tensor larger than `max_file_bytes` gets a file of its own.

    Raises:
        InputError: a value is not finite, or too large for `dtype`.
        DamagedCheckpoint: the source cannot be read. OSError: the disk refuses.
    """
    kind = DTYPE_NAMES[dtype]
    files = _deal(shapes, kind, max_file_bytes)
    for file in files:
        header = _header(file.tensors, shapes, kind)
        write_new(folder / file.name, _bytes_of(source, file.tensors, header, dtype, on_bytes))
    if len(files) > 1:
        weight_map = {name: file.name for file in files for name in file.tensors}
        index = {
            "metadata": {"total_size": sum(_byte_count(shape, kind) for shape in shapes.values())},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_new(folder / INDEX, [json.dumps(index, indent=2).encode() + b"\n"])


def _deal(shapes: Shapes, kind: str, max_file_bytes: int) -> list[File]:
    """Tensors by name, one file after the other filled."""
    groups: list[list[str]] = []
    room = 0
    for name in sorted(shapes):
        size = _byte_count(shapes[name], kind)
        if not groups or size > room:
            groups.append([])
            room = max_file_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return [File(SINGLE, tuple(groups[0]))]
    return [
        File(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


def _byte_count(shape: tuple[int, ...], kind: str) -> int:
    return DTYPE_BYTES[kind] * math.prod(shape)


def _header(names: Sequence[str], shapes: Shapes, kind: str) -> bytes:
    # transformers refuses files that do not say which framework their tensors are of.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + _byte_count(shapes[name], kind)
        entries[name] = {"dtype": kind, "shape": shapes[name], "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(
    source: TensorSource, names: Sequence[str], header: bytes, dtype: torch.dtype, on_bytes: OnBytes
) -> Iterator[bytes | memoryview]:
    yield header
    for name in names:
        for _, slab in source.slabs(name):
            rounded = slab.to(dtype)
            if not rounded.isfinite().all():
                way_out = (
                    "export with another --dtype" if slab.isfinite().all() else "take another checkpoint"
                )
                message = f"has a value that is not finite as {DTYPE_NAMES[dtype]}; {way_out}"
                raise InputError([Problem(name, list(source.tensors[name].shape), message)])
            yield memory_of(rounded)
            on_bytes(rounded.numel() * rounded.element_size())
