"""From one of our checkpoints to a folder that transformers loads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.export_weights import OnBytes, write_weights
from llmscale.checkpoint.files import write_new
from llmscale.checkpoint.loader import OPTIMIZER
from llmscale.checkpoint.manifest import Manifest
from llmscale.checkpoint.tensor_files import TensorFiles, verify_tensors
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import ModelSection
from llmscale.data.files import replace_folder
from llmscale.data.tokenizer import special_token_ids
from llmscale.model.huggingface import hugging_face_config
from llmscale.model.tensors import hugging_face_shapes, vocabulary_tensors
from llmscale.run.export_head import head_of, outputs_of, with_head
from llmscale.run.huggingface import copy_tokenizer
from llmscale.run.target import find_model, tokenizer_problems

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Export:
    """All that a folder is made of, known and checked before anything is written."""

    checkpoint: Path
    manifest: Manifest
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any]
    special_tokens: dict[str, int | None]
    tokenizer: Path | None
    dtype: torch.dtype
    writes: bool
    """It is a model that writes, and none with a head."""

    @property
    def byte_count(self) -> int:
        elements = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return elements * self.dtype.itemsize

    def write(self, folder: Path, max_file_bytes: int, on_bytes: OnBytes) -> None:
        """Verify the checkpoint's weights and write `folder`, which appears whole or not at all.

        Raises:
            InputError: the folder is not empty, or a value does not fit the type.
            CheckpointError: the checkpoint is damaged. OSError: the disk refuses.
        """
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise InputError(
                [Problem("OUT", folder, "is there already, and not empty; choose another folder")]
            )
        verify_tensors(self.checkpoint, self.manifest, self.shapes.keys())
        with (
            replace_folder(folder) as unfinished,
            TensorFiles.of_checkpoint(self.checkpoint, self.manifest) as source,
        ):
            write_weights(source, self.shapes, unfinished, self.dtype, max_file_bytes, on_bytes)
            write_new(unfinished / "config.json", [_json(self.config)])
            if self.writes:
                write_new(unfinished / "generation_config.json", [_json(self.special_tokens)])
            if self.tokenizer is not None:
                copy_tokenizer(self.tokenizer, unfinished)


def plan_export(target: str, root: Path, tokenizer: Path | None, dtype: str) -> Export:
    """What exporting the newest checkpoint of a run, or the one that is named, would write.

    Raises:
        InputError: no such checkpoint, or transformers has no such model.
        CheckpointError: it does not hold the model that it says.
    """
    found = find_model(target, root)
    manifest = found.checkpoint.manifest
    assert manifest is not None
    described = manifest.description.get("model")
    model = found.config.model if described is None else ModelSection.model_validate(described)
    positions = model.max_positions or found.config.train.sequence_length
    vocabulary_size = _rows(manifest, vocabulary_tensors(model)[0])
    head = head_of(manifest.description)
    shapes = hugging_face_shapes(model, vocabulary_size, positions, outputs_of(head))
    faults = list(_misfits(manifest, shapes))
    if faults:
        raise CheckpointError(f"{found.checkpoint.path}: " + "; ".join(faults))
    tokenizer = tokenizer or found.tokenizer
    special_tokens: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        problems = tokenizer_problems(tokenizer, manifest.description.get("tokenizer_hash"), vocabulary_size)
        if problems:
            raise InputError(problems)
        special_tokens = special_token_ids(tokenizer)
    name = str(DTYPES[dtype]).removeprefix("torch.")
    config = hugging_face_config(model, vocabulary_size, positions, name) | special_tokens
    if head is not None:
        config = with_head(config, head, special_tokens, tokenizer)
    return Export(
        found.checkpoint.path,
        manifest,
        shapes,
        config,
        special_tokens,
        tokenizer,
        DTYPES[dtype],
        head is None,
    )


def _rows(manifest: Manifest, name: str) -> int:
    entry = manifest.tensors.get(name)
    if entry is None or not entry.shape:
        raise CheckpointError(f"{name} is not stored")
    return entry.shape[0]


def _misfits(manifest: Manifest, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Where the stored weights are not those of the model."""
    stored = {n: entry.shape for n, entry in manifest.tensors.items() if not n.startswith(OPTIMIZER)}
    for name in sorted(stored.keys() | shapes.keys()):
        if stored.get(name) != shapes.get(name):
            yield f"{name} is stored as {stored.get(name)}, and the model has {shapes.get(name)}"


def _json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=2, sort_keys=True).encode() + b"\n"
