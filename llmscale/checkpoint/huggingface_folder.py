"""A folder with a Hugging Face model: what is in it, by its `config.json` and the headers of its weights.

Nothing of the folder is run or unpickled, its weights are not read here, and no torch is needed.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmscale.checkpoint.errors import DamagedCheckpoint
from llmscale.checkpoint.files import open_regular, read_exactly
from llmscale.checkpoint.manifest import DTYPE_BYTES
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import ModelSection
from llmscale.model.families.table import family as family_named
from llmscale.model.huggingface import has_head, model_of
from llmscale.model.tensors import EMBEDDING, OUTPUT, SCORE, hugging_face_shapes

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = ("F32", "BF16", "F16")
HEADER_LIMIT = 100 << 20
BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Constants that older versions of transformers stored with the weights."""
COMPARED_BYTES = 8 << 20


@dataclass(frozen=True)
class WeightFile:
    path: Path
    """With links resolved: caches of the hub are made of them."""
    header: bytes
    """Everything before the first tensor."""
    byte_count: int


@dataclass(frozen=True)
class FolderTensor:
    shape: tuple[int, ...]
    dtype: str
    file: int
    """Index in `files`."""
    offset: int
    """Of its first byte in that file."""

    @property
    def byte_count(self) -> int:
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A folder whose weights are all there, in the names and shapes that its config implies."""

    path: Path
    config: Mapping[str, Any]
    model: ModelSection
    files: tuple[WeightFile, ...]
    tensors: dict[str, FolderTensor]
    """By the names that our checkpoints use, without duplicates of a tied output."""

    @property
    def outputs(self) -> int | None:
        """Scores that it gives of a text; None of a model that writes."""
        if not has_head(self.config):
            return None
        return self.tensors[SCORE].shape[0] if SCORE in self.tensors else 1


def is_hugging_face_folder(path: Path) -> bool:
    """There is a `config.json`, which no run and no checkpoint of ours has."""
    return (path / CONFIG).is_file()


def open_folder(path: Path) -> HuggingFaceFolder:
    """Look at everything but the values of the weights.

    Raises:
        InputError: naming each thing in it that llmscale cannot follow.
    """
    config = _json(path, CONFIG)
    problems: list[Problem] = []
    model = None
    try:
        model = model_of(config)
    except InputError as error:
        problems += error.problems
    problems += _code_in_tokenizer(path)
    try:
        files, tensors = _weights(path)
    except InputError as error:
        raise InputError(problems + error.problems) from None
    if model is None or problems:
        raise InputError(problems)
    tensors = _in_our_names(model, tensors)
    _drop_tied_copy(model, files, tensors)
    found = HuggingFaceFolder(path, config, model, tuple(files), tensors)
    problems = list(_misfits(found))
    if problems:
        raise InputError(problems)
    return found


def weight_files(path: Path) -> list[Path]:
    """The files of a folder's weights, with links resolved.

    Raises:
        InputError: there are none that llmscale reads.
    """
    return [(path / name).resolve() for name in _file_names(path)[0]]


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        tree = json.loads((path / name).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError([Problem(name, path, f"cannot be read: {error}")]) from None
    if not isinstance(tree, dict):
        raise InputError([Problem(name, path, "must be a JSON object")])
    return tree


def _code_in_tokenizer(path: Path) -> Iterator[Problem]:
    name = "tokenizer_config.json"
    if (path / name).is_file() and "auto_map" in _json(path, name):
        message = "names code to be run, which llmscale never does; take a tokenizer without it"
        yield Problem(f"{name}: auto_map", "{…}", message)


def _weights(path: Path) -> tuple[list[WeightFile], dict[str, FolderTensor]]:
    """All tensors in all files, by the names that they are stored under."""
    names, weight_map = _file_names(path)
    files: list[WeightFile] = []
    tensors: dict[str, FolderTensor] = {}
    problems: list[Problem] = []
    for number, name in enumerate(names):
        try:
            file, found = read_header((path / name).resolve(), number)
        except DamagedCheckpoint as error:
            problems.append(Problem(name, path, str(error)))
            continue
        files.append(file)
        for key, tensor in found.items():
            if weight_map is not None and weight_map.get(key) != name:
                message = f"lies in {name}, and {INDEX} says otherwise: {weight_map.get(key)}"
                problems.append(Problem(key, path, message))
            tensors[key] = tensor
    if not problems:
        missing = sorted(set(weight_map or ()) - tensors.keys())
        problems += [Problem(key, path, f"is in {INDEX} and in no file") for key in missing]
    if problems:
        raise InputError(problems)
    return files, tensors


def _file_names(path: Path) -> tuple[list[str], dict[str, str] | None]:
    """The files with weights, and which tensor the index says is in which."""
    if (path / SINGLE).exists():
        return [SINGLE], None
    if (path / INDEX).exists():
        weight_map = _json(path, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError([Problem(INDEX, path, "has no weight_map")])
        strangers = sorted({str(name) for name in weight_map.values() if not _is_plain(name)})
        if strangers:
            message = "is no name of a safetensors file in the same folder"
            raise InputError([Problem(f"{INDEX}: weight_map", name, message) for name in strangers])
        return sorted(set(weight_map.values())), weight_map
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        message = (
            f"has its weights in pickles ({', '.join(pickles[:3])}), which can run any code when opened. "
            "Where you trust them, turn them into safetensors with transformers, in a place where nothing "
            "can be harmed: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    else:
        message = f"has neither {SINGLE} nor {INDEX}"
    raise InputError([Problem("weights", path, message)])


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name == os.path.basename(name) and name.endswith(".safetensors")  # noqa: PTH119


def read_header(path: Path, number: int) -> tuple[WeightFile, dict[str, FolderTensor]]:
    """A safetensors file's header; its tensors lie one after the other and fill the file.

    Raises:
        DamagedCheckpoint: it is no such file.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        length = int.from_bytes(read_exactly(descriptor, 0, bytearray(8), path), "little")
        if length > min(HEADER_LIMIT, size - 8):
            raise DamagedCheckpoint(f"{path}: no safetensors file, or cut off: its header is not all there")
        header = read_exactly(descriptor, 0, bytearray(8 + length), path)
    finally:
        os.close(descriptor)
    try:
        tree = json.loads(header[8:])
        tensors = {
            name: _tensor(entry, number, len(header))
            for name, entry in tree.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path}: its header is no safetensors header: {error!r}") from None
    end = len(header)
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.byte_count)):
        if tensor.offset != end:
            raise DamagedCheckpoint(f"{path}: its tensors do not lie one after the other")
        end += tensor.byte_count
    if end != size:
        raise DamagedCheckpoint(f"{path}: has {size} bytes, and its header tells of {end}")
    return WeightFile(path, header, size), tensors


def _tensor(entry: dict[str, Any], file: int, base: int) -> FolderTensor:
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    if not all(type(size) is int and size > 0 for size in shape) or type(start) is not int or start < 0:
        raise ValueError(f"shape {shape} at {start}")
    tensor = FolderTensor(tuple(shape), entry["dtype"], file, base + start)
    if entry["dtype"] not in DTYPE_BYTES:
        raise ValueError(f"element type {entry['dtype']}")
    if stop - start != tensor.byte_count:
        raise ValueError(f"{stop - start} bytes for {entry['dtype']} {shape}")
    return tensor


def _in_our_names(model: ModelSection, tensors: dict[str, FolderTensor]) -> dict[str, FolderTensor]:
    """Without stored constants; and with the prefix that models without their head are stored without."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}
    embedding = family_named(model.family).names[EMBEDDING][0]
    prefix = embedding.partition(".")[0] + "."
    if embedding.removeprefix(prefix) not in kept:
        return kept
    return {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in kept.items()}


def _drop_tied_copy(model: ModelSection, files: list[WeightFile], tensors: dict[str, FolderTensor]) -> None:
    """Some store a tied output a second time. It goes if it is the same.

    Raises:
        InputError: it is not.
    """
    names = family_named(model.family).names
    embedding, (name,) = tensors.get(names[EMBEDDING][0]), names[OUTPUT]
    if not model.tie_embeddings_or_default or name not in tensors or embedding is None:
        return
    output = tensors.pop(name)
    alike = (output.shape, output.dtype) == (embedding.shape, embedding.dtype)
    if not alike or any(a != b for a, b in zip(_chunks(files, output), _chunks(files, embedding))):
        message = f"differs from {names[EMBEDDING][0]}, and config.json ties them (tie_word_embeddings)"
        raise InputError([Problem(name, list(output.shape), message)])


def _chunks(files: list[WeightFile], tensor: FolderTensor) -> Iterator[bytes]:
    path = files[tensor.file].path
    descriptor = open_regular(path)
    try:
        for first in range(0, tensor.byte_count, COMPARED_BYTES):
            size = min(COMPARED_BYTES, tensor.byte_count - first)
            yield read_exactly(descriptor, tensor.offset + first, bytearray(size), path)
    finally:
        os.close(descriptor)


def _misfits(found: HuggingFaceFolder) -> Iterator[Problem]:
    """Tensors that are not those of the model that the folder's config tells of."""
    model = found.model
    assert model.vocabulary_size is not None and model.max_positions is not None
    expected = hugging_face_shapes(model, model.vocabulary_size, model.max_positions, found.outputs)
    for name in sorted(expected.keys() | found.tensors.keys()):
        tensor = found.tensors.get(name)
        if tensor is None:
            yield Problem(name, "missing", f"must be there, with shape {list(expected[name])}")
        elif name not in expected:
            yield Problem(name, list(tensor.shape), "is no tensor of the model that config.json tells of")
        elif tensor.shape != expected[name]:
            yield Problem(name, list(tensor.shape), f"has shape {list(expected[name])} by config.json")
        elif tensor.dtype not in DTYPES:
            yield Problem(
                name, tensor.dtype, f"is of a type that llmscale does not read: {', '.join(DTYPES)}"
            )
