"""From a Hugging Face folder to a folder as a run of ours leaves it: config, tokenizer, one checkpoint."""

import math
from dataclasses import dataclass
from pathlib import Path

from llmscale.checkpoint.export_weights import OnBytes
from llmscale.checkpoint.huggingface_folder import HuggingFaceFolder, open_folder
from llmscale.checkpoint.import_weights import import_weights
from llmscale.checkpoint.store import Store
from llmscale.checkpoint.tensor_files import TensorFiles
from llmscale.config.load import write_resolved
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.files import replace_folder
from llmscale.data.tokenizer import tokenizer_hash, vocabulary_size
from llmscale.model.tensors import hugging_face_shapes
from llmscale.run.huggingface import copy_tokenizer, folder_config, folder_tokenizer, refuse_filled
from llmscale.runtime.run_folder import CONFIG_NAME


@dataclass(frozen=True)
class Import:
    """All that a run folder is made of, known and checked before anything is written."""

    source: HuggingFaceFolder
    output: Path
    config: Config
    shapes: dict[str, tuple[int, ...]]
    tokenizer: Path | None

    @property
    def gained_tokens(self) -> int:
        """Rows that the embedding gets beyond those of the folder."""
        return (self.config.model.vocabulary_size or 0) - (self.source.model.vocabulary_size or 0)

    @property
    def byte_count(self) -> int:
        return sum(4 * math.prod(shape) for shape in self.shapes.values())

    def write(self, on_bytes: OnBytes) -> None:
        """Write the output folder, which appears whole or not at all.

        Raises:
            InputError: a value is not finite. CheckpointError: the source cannot be read.
            OSError: the disk refuses.
        """
        description = {
            "layout": "Hugging Face folder",
            "model": self.config.model.model_dump(mode="json"),
            "precision": self.config.train.precision,
            "tokenizer_hash": None if self.tokenizer is None else tokenizer_hash(self.tokenizer),
        }
        with replace_folder(self.output) as unfinished, TensorFiles.of_folder(self.source) as source:
            write_resolved(self.config, unfinished / CONFIG_NAME)
            if self.tokenizer is not None:
                copy_tokenizer(self.tokenizer, unfinished / "tokenizer")
            import_weights(source, self.shapes, Store(unfinished / "checkpoints"), description, on_bytes)


def plan_import(folder: Path, output: Path, tokenizer: Path | None) -> Import:
    """What importing `folder` as `output` would write.

    Raises:
        InputError: naming each thing in the folder that llmscale cannot follow.
    """
    if not folder.is_dir():
        raise InputError([Problem("HF_FOLDER", folder, "is no folder")])
    refuse_filled(output)
    found = open_folder(folder)
    if found.outputs is not None:
        message = "scores texts and does not write; `llmscale score` and train.init_from take it as it is"
        raise InputError([Problem("HF_FOLDER", folder, message)])
    tokenizer = tokenizer or folder_tokenizer(folder)
    model = found.model
    assert model.vocabulary_size is not None and model.max_positions is not None
    rows = max(model.vocabulary_size, vocabulary_size(tokenizer) if tokenizer else 0)
    named = None if tokenizer is None else output / "tokenizer"
    config = folder_config(found, _run_name(output), named, rows)
    shapes = hugging_face_shapes(model, rows, model.max_positions)
    return Import(found, output, config, shapes, tokenizer)


def _run_name(output: Path) -> str:
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in output.name)
    return kept.strip("-")[:128] or "imported"
