"""What a run with PEFT has trained, as a folder that the peft library loads on top of its base."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from llmscale.checkpoint.base import Base
from llmscale.checkpoint.export_weights import OnBytes
from llmscale.checkpoint.files import write_new
from llmscale.checkpoint.loader import OPTIMIZER
from llmscale.checkpoint.manifest import DTYPE_BYTES, Manifest
from llmscale.checkpoint.merged import PEFT_PREFIX
from llmscale.checkpoint.tensor_files import TensorFiles, verify_tensors
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import ModelSection
from llmscale.config.tuning import PeftSection
from llmscale.data.files import replace_folder
from llmscale.model.families.table import family
from llmscale.model.tensors import SCORE, hugging_face_shapes
from llmscale.run.export_head import Padding
from llmscale.run.huggingface import copy_tokenizer, json_file, refuse_filled

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = "head.json"
"""What the base's config has to say for a head to stand on it: the adapter's own has no place for labels."""
TYPES = {
    "lora": "LORA",
    "dora": "LORA",
    "prefix_tuning": "PREFIX_TUNING",
    "prompt_tuning": "PROMPT_TUNING",
    "p_tuning": "P_TUNING",
}
"""Methods that the peft library has, by its names."""
PROMPT = "prompt_embeddings"


@dataclass(frozen=True)
class AdapterExport:
    """All that a folder is made of, known and checked before anything is written."""

    checkpoint: Path
    manifest: Manifest
    peft: PeftSection
    model: ModelSection
    base: Base
    tokenizer: Path | None
    dtype: torch.dtype
    chat_template: str | None = None
    """The one that the run was tuned with."""
    head: Mapping[str, Any] | None = None
    """What a head that was trained beside the update tells; None of a model that writes."""
    padding: Padding | None = None
    """Of texts that it scores."""

    @property
    def names(self) -> list[str]:
        """Of the stored tensors that are taken."""
        return [name for name in self.manifest.tensors if not name.startswith(OPTIMIZER)]

    @property
    def byte_count(self) -> int:
        entries = [self.manifest.tensors[name] for name in self.names]
        return sum(DTYPE_BYTES[entry.dtype] * math.prod(entry.shape) for entry in entries)

    def write(self, folder: Path, max_file_bytes: int, on_bytes: OnBytes) -> None:
        """Verify what was trained and write `folder`, which appears whole or not at all; the weights are one
        file, whatever `max_file_bytes` says, as the peft library has it.

        Raises:
            InputError: the folder is not empty, or a value does not fit the type.
            CheckpointError: the checkpoint is damaged.
            OSError: the disk refuses.
        """
        refuse_filled(folder)
        verify_tensors(self.checkpoint, self.manifest, set(self.names))
        with replace_folder(folder) as unfinished:
            with TensorFiles.of_checkpoint(self.checkpoint, self.manifest) as source:
                stored = {}
                for name in self.names:
                    stored[name] = source.whole(name)
                    on_bytes(stored[name].nbytes)
            tensors = self._renamed(stored)
            rounded = {name: self._rounded(name, tensor) for name, tensor in tensors.items()}
            write_new(unfinished / WEIGHTS, [save(rounded, metadata={"format": "pt"})])
            write_new(unfinished / CONFIG, [json_file(self.config())])
            if self.head is not None:
                write_new(unfinished / HEAD, [json_file(self.head)])
            if self.tokenizer is not None:
                pad_token = self.padding and self.padding.token
                copy_tokenizer(self.tokenizer, unfinished, self.chat_template, pad_token)

    def _renamed(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the names that the library gives them."""
        found = dict(stored)
        score = found.pop(SCORE, None)
        if self.peft.method == "p_tuning":
            found = {PROMPT: _encoded(found)}
        if score is not None:
            # It puts a layer of its own around a model only where it changes layers.
            found[(PEFT_PREFIX if self.peft.method in ("lora", "dora") else "base_model.") + SCORE] = score
        return found

    def _rounded(self, name: str, tensor: Tensor) -> Tensor:
        found = tensor.to(self.dtype)
        if not found.isfinite().all():
            message = f"has a value that is not finite as {self.dtype}; export with another --dtype"
            raise InputError([Problem(name, list(tensor.shape), message)])
        return found

    def config(self) -> dict[str, Any]:
        """`adapter_config.json`."""
        peft, common = (
            self.peft,
            {
                "peft_type": TYPES[self.peft.method],
                "task_type": "CAUSAL_LM" if self.head is None else "SEQ_CLS",
                "base_model_name_or_path": str(self.base.path),
                "inference_mode": True,
            },
        )
        if self.head is not None:
            common["modules_to_save"] = [SCORE.removesuffix(".weight")]
        if peft.method in ("lora", "dora"):
            return common | {
                "r": peft.rank,
                "lora_alpha": int(peft.alpha) if peft.alpha.is_integer() else peft.alpha,
                "lora_dropout": peft.dropout,
                "use_rslora": peft.rslora,
                "use_dora": peft.method == "dora",
                "target_modules": target_modules(self.model, self.names),
                "fan_in_fan_out": bool(family(self.model.family).transposed),
                "bias": "none",
            }
        # The prefix is made of keys and values, the other two of embeddings.
        is_prefix = peft.method == "prefix_tuning"
        heads = self.model.kv_heads_or_default if is_prefix else self.model.heads
        width = heads * self.model.head_size_or_default if is_prefix else self.model.hidden_size
        prompt = {
            "num_virtual_tokens": peft.virtual_tokens,
            "token_dim": width,
            "num_transformer_submodules": 1,
            "num_attention_heads": heads,
            "num_layers": self.model.layers,
        }
        of_method: Mapping[str, dict[str, Any]] = {
            "prefix_tuning": {"prefix_projection": False, "encoder_hidden_size": width},
            "prompt_tuning": {"prompt_tuning_init": "RANDOM"},
            "p_tuning": {
                "encoder_reparameterization_type": "MLP",
                "encoder_hidden_size": peft.encoder_hidden_size or width,
            },
        }
        return common | prompt | of_method[peft.method]


def _encoded(tensors: Mapping[str, Tensor]) -> Tensor:
    """The virtual tokens that a network has learned to make: the library keeps them, and not the network."""
    # Loads Megatron too, which nothing else here needs.
    return import_module("llmscale.model.peft.p_tuning").encoded(tensors)


def target_modules(model: ModelSection, names: list[str]) -> list[str]:
    """The layers that have an update, by the ends of their names where those mean no others, else in full.

    Args:
        names: of the trained tensors.
    """
    changed = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in names if ".lora_A." in name}
    every = {
        name.removesuffix(".weight") for name in hugging_face_shapes(model, 1, 1) if name.endswith(".weight")
    }
    short = {name.rpartition(".")[2] for name in changed}
    return sorted(short if {n for n in every if n.rpartition(".")[2] in short} == changed else changed)


def adapter_problems(
    peft: PeftSection, manifest: Manifest, base_rows: int, rows: int, place: Path
) -> Iterator[Problem]:
    """Why the peft library could not load what was trained."""
    if peft.method not in TYPES:
        message = (
            f"was trained with peft.method = {peft.method}, which the peft library has not; its weights lie, "
            "by name, in the safetensors files of the checkpoint"
        )
        yield Problem("TARGET", place, message)
    if rows != base_rows:
        message = f"has {rows} rows of tokens, and its base has {base_rows}; export it whole with --merge"
        yield Problem("TARGET", place, message)
