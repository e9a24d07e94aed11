"""What a checkpoint says about itself: `manifest.json`, the marker `COMMITTED`, and each rank's part of it.

Everything read from disk passes these models before it is used: no unknown keys, no paths (a shard's
file name follows from its index), boxes inside their tensors. Nothing here imports torch.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from llmscale.checkpoint.errors import DamagedCheckpoint

FORMAT = "llmscale-checkpoint-1"
MANIFEST, MARKER = "manifest.json", "COMMITTED"
BLOCK_BYTES = 8 << 20
"""Shards are hashed in blocks of this size: ranks and threads share the work, and damage has an address."""

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1
}  # fmt: skip
"""Safetensors' names of element types, with their sizes."""

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SaveId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
JsonObject = dict[str, JsonValue]


class Record(BaseModel):
    """Strict, immutable, and with exactly one spelling as bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


RecordType = TypeVar("RecordType", bound=Record)


class StoredBox(Record):
    """A box of a tensor and the shard that holds it, under the key `box_key(name, start)`."""

    start: tuple[Count, ...]
    size: tuple[Positive, ...]
    shard: Count


class TensorEntry(Record):
    shape: tuple[Count, ...]
    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    boxes: tuple[StoredBox, ...]

    @model_validator(mode="after")
    def _boxes_are_inside(self) -> "TensorEntry":
        for box in self.boxes:
            if not len(box.start) == len(box.size) == len(self.shape):
                raise ValueError(f"box {box.start} + {box.size} of a tensor of shape {self.shape}")
            if any(a + n > size for a, n, size in zip(box.start, box.size, self.shape)):
                raise ValueError(f"box {box.start} + {box.size} leaves the tensor of shape {self.shape}")
        return self


class ShardEntry(Record):
    file: str
    byte_count: Count
    block_bytes: Annotated[int, Field(gt=0, le=8 * BLOCK_BYTES)] = BLOCK_BYTES
    blocks: tuple[Sha256, ...]
    """SHA-256 of each `block_bytes` of the file; the last block may be shorter."""

    @model_validator(mode="after")
    def _blocks_are_all_there(self) -> "ShardEntry":
        if len(self.blocks) != -(-self.byte_count // self.block_bytes):
            raise ValueError(f"{len(self.blocks)} block hashes for {self.byte_count} bytes")
        return self


class Part(Record):
    """What one rank tells rank 0 once its shard is durable."""

    save_id: SaveId
    shard: ShardEntry
    tensors: dict[str, TensorEntry]


class Manifest(Record):
    format: Literal["llmscale-checkpoint-1"] = FORMAT
    save_id: SaveId
    epoch: Count
    """Fencing epoch: which start of the run wrote this."""
    step: Count
    saved_at: float
    """Seconds since 1970, for people; nothing is ordered by it."""
    progress: JsonObject
    description: JsonObject
    shards: tuple[ShardEntry, ...]
    tensors: dict[str, TensorEntry]

    @model_validator(mode="after")
    def _shards_are_consistent(self) -> "Manifest":
        for index, shard in enumerate(self.shards):
            if shard.file != shard_file(index):
                raise ValueError(f"shard {index} is called {shard.file!r}")
        for name, tensor in self.tensors.items():
            if any(box.shard >= len(self.shards) for box in tensor.boxes):
                raise ValueError(f"{name} lies in a shard that is not listed")
        return self

    @property
    def byte_count(self) -> int:
        return sum(shard.byte_count for shard in self.shards)


class Marker(Record):
    format: Literal["llmscale-checkpoint-1"] = FORMAT
    save_id: SaveId
    epoch: Count
    step: Count
    manifest_sha256: Sha256


def shard_file(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def box_key(name: str, start: tuple[int, ...]) -> str:
    """Key of a box inside a shard: several boxes of one tensor fit in one file."""
    return f"{name}@{','.join(map(str, start))}"


def marker_of(manifest: Manifest, data: bytes) -> Marker:
    return Marker(
        save_id=manifest.save_id,
        epoch=manifest.epoch,
        step=manifest.step,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
    )


def canonical_json(value: object) -> bytes:
    """The one spelling of a value as JSON.

    Raises:
        ValueError: not finite, or not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def json_object(value: Mapping[str, JsonValue]) -> JsonObject:
    """A copy by value, and the proof that it can be stored."""
    return json.loads(canonical_json(dict(value)))


def parse(record: type[RecordType], data: bytes, source: object) -> RecordType:
    """Read a record back; anything but the bytes that `to_bytes` would write is damage."""
    try:
        value = record.model_validate_json(data)
        written = value.to_bytes()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedCheckpoint(f"{source}: {place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:  # NaN, surrogates, numbers of thousands of digits
        raise DamagedCheckpoint(f"{source}: {error}") from error
    if written != data:
        raise DamagedCheckpoint(f"{source}: not as it was written")
    return value
