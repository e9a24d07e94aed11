"""From one of our checkpoints to a folder that transformers, or the peft library, loads."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmscale.checkpoint.base import Base, on_moved_base
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.export_weights import OnBytes, write_weights
from llmscale.checkpoint.files import write_new
from llmscale.checkpoint.loader import OPTIMIZER
from llmscale.checkpoint.manifest import Manifest
from llmscale.checkpoint.merged import open_base, open_weights, verify_weights
from llmscale.checkpoint.tensor_files import TensorSource
from llmscale.checkpoint.tuned import PEFT, VOCABULARY
from llmscale.config.problems import InputError
from llmscale.config.schema import Config, ModelSection
from llmscale.config.tuning import PeftSection
from llmscale.data.chat.encode import chat_encoder
from llmscale.data.chat.template import template_of
from llmscale.data.files import replace_folder
from llmscale.data.tokenizer import special_token_ids
from llmscale.model.huggingface import hugging_face_config
from llmscale.model.tensors import hugging_face_shapes, not_begun_from, vocabulary_tensors
from llmscale.run.export_adapter import AdapterExport, adapter_problems
from llmscale.run.export_head import (
    REWARD,
    Padding,
    head_of,
    outputs_of,
    padding_of_answers,
    padding_of_texts,
    what_it_tells,
    with_head,
)
from llmscale.run.huggingface import copy_tokenizer, json_file, refuse_filled
from llmscale.run.target import StoredModel, find_model, tokenizer_problems

WHOLE = ("none", "bitfit", "freeze")
"""Methods that train weights of the model itself: there is nothing to be had beside it."""
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
    chat_template: str | None = None
    """The one that the run was tuned with."""
    padding: Padding | None = None
    """Of texts that a head scores."""
    base: Base | None = None
    """Nothing else is needed."""

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
        refuse_filled(folder)
        verify_weights(self.checkpoint, self.manifest)
        with (
            replace_folder(folder) as unfinished,
            open_weights(self.checkpoint, self.manifest) as source,
        ):
            write_weights(source, self.shapes, unfinished, self.dtype, max_file_bytes, on_bytes)
            write_new(unfinished / "config.json", [json_file(self.config)])
            if self.writes:
                write_new(unfinished / "generation_config.json", [json_file(self.special_tokens)])
            if self.tokenizer is not None:
                pad_token = self.padding and self.padding.token
                copy_tokenizer(self.tokenizer, unfinished, self.chat_template, pad_token)


def plan_export(
    target: str,
    root: Path,
    tokenizer: Path | None,
    dtype: str,
    merge: bool = False,
    base: Path | None = None,
) -> Export | AdapterExport:
    """What exporting the newest checkpoint of a run, or the one that is named, would write.

    Args:
        target: what the user wrote.
        root: folder that holds the run folders.
        tokenizer: its folder, where it is not the one that belongs to the model.
        dtype: of the weights.
        merge: the whole model, of a run with PEFT too.
        base: of a run with PEFT: where its base is now.

    Raises:
        InputError: no such checkpoint, or transformers has no such model.
        CheckpointError: it does not hold the model that it says, or its base has gone.
    """
    found = find_model(target, root)
    assert found.checkpoint.manifest is not None
    manifest = on_moved_base(found.checkpoint.manifest, base)
    tokenizer = tokenizer or found.tokenizer
    peft = PeftSection.model_validate(manifest.description.get(PEFT, {}))
    if merge or peft.method in WHOLE:
        return _plan_whole(found, manifest, tokenizer, DTYPES[dtype])
    return _plan_adapter(found, manifest, peft, tokenizer, DTYPES[dtype])


def _plan_adapter(
    found: StoredModel, manifest: Manifest, peft: PeftSection, tokenizer: Path | None, dtype: torch.dtype
) -> AdapterExport:
    checkpoint, model = found.checkpoint.path, ModelSection.model_validate(manifest.description["model"])
    base = Base.in_description(manifest.description)
    assert base is not None
    base.check()
    with open_base(base) as source:
        base_rows = _rows(source, vocabulary_tensors(model)[0])
    rows = int(str(manifest.description[VOCABULARY]))
    problems = list(adapter_problems(peft, manifest, base_rows, rows, checkpoint))
    if tokenizer is not None:
        problems += tokenizer_problems(tokenizer, manifest.description.get("tokenizer_hash"), rows)
    if problems:
        raise InputError(problems)
    template = _template(found.config, tokenizer)
    head, padding = head_of(manifest.description), _padding(found.config, manifest, tokenizer)
    tells = None if head is None or padding is None else what_it_tells(head, padding)
    return AdapterExport(checkpoint, manifest, peft, model, base, tokenizer, dtype, template, tells, padding)


def _plan_whole(found: StoredModel, manifest: Manifest, tokenizer: Path | None, dtype: torch.dtype) -> Export:
    described = manifest.description.get("model")
    model = found.config.model if described is None else ModelSection.model_validate(described)
    positions = model.max_positions or found.config.train.sequence_length
    head = head_of(manifest.description)
    with open_weights(found.checkpoint.path, manifest) as source:
        vocabulary_size = _rows(source, vocabulary_tensors(model)[0])
        shapes = hugging_face_shapes(model, vocabulary_size, positions, outputs_of(head))
        # A base has an output layer, and what was trained on top of it may have a head instead.
        ignored = not_begun_from(model, outputs_of(head)) if PEFT in manifest.description else []
        faults = list(_misfits(source, shapes, set(ignored) - shapes.keys()))
    if faults:
        raise CheckpointError(f"{found.checkpoint.path}: " + "; ".join(faults))
    if tokenizer is not None:
        problems = tokenizer_problems(tokenizer, manifest.description.get("tokenizer_hash"), vocabulary_size)
        if problems:
            raise InputError(problems)
    special_tokens = _special_tokens(tokenizer)
    name = str(dtype).removeprefix("torch.")
    config = hugging_face_config(model, vocabulary_size, positions, name) | special_tokens
    padding = _padding(found.config, manifest, tokenizer)
    if head is not None and padding is not None:
        config = with_head(config, head, padding)
    return Export(
        found.checkpoint.path,
        manifest,
        shapes,
        config,
        special_tokens,
        tokenizer,
        dtype,
        writes=head is None,
        chat_template=_template(found.config, tokenizer),
        padding=padding,
    )


def _template(config: Config, tokenizer: Path | None) -> str | None:
    """The chat template of a model that a run has taught to answer, or to score answers; None of another one.

    Raises:
        InputError: it has gone.
    """
    if config.task not in ("sft", "dpo", "reward") or tokenizer is None:
        return None
    template = template_of(config, tokenizer)
    return template.file_for_scores if config.task == "reward" else template.file


def _padding(config: Config, manifest: Manifest, tokenizer: Path | None) -> Padding | None:
    """Of the texts that the model scores; None for one that writes.

    Raises:
        InputError: transformers could not tell where a padded text ends.
    """
    if head_of(manifest.description) is None:
        return None
    if REWARD not in manifest.description or tokenizer is None:
        return padding_of_texts(tokenizer)
    ends = chat_encoder(config, tokenizer, config.train.sequence_length).stops
    return padding_of_answers(tokenizer, ends)


def _special_tokens(tokenizer: Path | None) -> dict[str, int | None]:
    """Ids of the tokens that begin, end and pad a text."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return special_token_ids(tokenizer)


def _rows(source: TensorSource, name: str) -> int:
    entry = source.tensors.get(name)
    if entry is None or not entry.shape:
        raise CheckpointError(f"{name} is not stored")
    return entry.shape[0]


def _misfits(source: TensorSource, shapes: dict[str, tuple[int, ...]], ignored: Set[str]) -> Iterator[str]:
    """Where the stored weights are not those of the model."""
    stored = {n: entry.shape for n, entry in source.tensors.items() if not n.startswith(OPTIMIZER)}
    for name in sorted((stored.keys() | shapes.keys()) - ignored):
        if stored.get(name) != shapes.get(name):
            yield f"{name} is stored as {stored.get(name)}, and the model has {shapes.get(name)}"
