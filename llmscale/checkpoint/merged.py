"""All weights of a checkpoint, also of one that holds only what was trained on top of a base.

What LoRA and DoRA have trained goes into the weights of their layers; weights that were trained themselves
(BitFit, `freeze`, a head) take the place of the base's. Slab by slab, so memory stays small. The arithmetic
is float64 on a fixed grid of rows and rounded once, so each element is the same whatever part of a tensor is
asked for.

Shapes: O outputs and I inputs of a layer, R rank, N rows.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from llmscale.checkpoint.base import Base
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.huggingface_folder import is_hugging_face_folder, open_folder
from llmscale.checkpoint.manifest import Manifest, TensorEntry
from llmscale.checkpoint.shards import TORCH_DTYPES
from llmscale.checkpoint.store import inspect
from llmscale.checkpoint.tensor_files import SLAB_BYTES, TensorFiles, TensorSource, verify_tensors
from llmscale.checkpoint.tuned import PEFT, VOCABULARY, not_mergeable
from llmscale.config.problems import InputError
from llmscale.config.schema import ModelSection
from llmscale.config.tuning import PeftSection
from llmscale.model.families.table import family
from llmscale.model.regions import Box
from llmscale.model.tensors import SCORE, vocabulary_tensors

OPTIMIZER = "optimizer."
PEFT_PREFIX = "base_model.model."
"""Of the names that the peft library gives what belongs to a layer."""


class MergedTensors(TensorSource):
    """The weights of `base` with what was trained on top of them.

    Args:
        base: all weights, perhaps with fewer rows of tokens than the model has.
        trained: those that a run with PEFT has trained.
        peft: its options; of a method that can be merged.
        model: of both.
        vocabulary_size: rows of tokens that the run has had.
    """

    def __init__(
        self,
        base: TensorSource,
        trained: TensorSource,
        peft: PeftSection,
        model: ModelSection,
        vocabulary_size: int,
    ) -> None:
        self._base, self._trained, self._method = base, trained, peft.method
        self._scale = peft.alpha / (math.sqrt(peft.rank) if peft.rslora else peft.rank)
        self._transposed = bool(family(model.family).transposed)
        self._norms: dict[str, Tensor] = {}
        replaced = {name: entry for name, entry in trained.tensors.items() if name in (*base.tensors, SCORE)}
        self._replaced = replaced.keys()
        self.tensors = {name: self._entry(name) for name in base.tensors} | replaced
        for name in set(vocabulary_tensors(model)) & base.tensors.keys():
            entry = self.tensors[name]
            rows = max(vocabulary_size, entry.shape[0])
            self.tensors[name] = entry.model_copy(update={"shape": (rows, *entry.shape[1:])})

    def _entry(self, name: str) -> TensorEntry:
        if not self._is_changed(name):
            return self._base.tensors[name]
        # Rounded to what the update is stored in, which is never less than the base.
        dtype = self._trained.tensors[self._part(name, "lora_A.weight")].dtype
        return self._base.tensors[name].model_copy(update={"dtype": dtype})

    def _is_changed(self, name: str) -> bool:
        return self._part(name, "lora_A.weight") in self._trained.tensors

    @staticmethod
    def _part(name: str, part: str) -> str:
        return f"{PEFT_PREFIX}{name.removesuffix('weight')}{part}"

    def slabs(self, name: str, box: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        shape = self.tensors[name].shape
        box = box or Box((0,) * len(shape), shape)
        source = self._trained if name in self._replaced else self._base
        stored = source.tensors[name].shape
        inside = box.intersection(Box((0,) * len(stored), stored))
        if inside is not None:
            changed = self._changed(name, inside) if self._is_changed(name) else source.slabs(name, inside)
            yield from changed
        first_new = max(box.start[0], stored[0])
        if first_new < box.start[0] + box.size[0]:
            rows = box.start[0] + box.size[0] - first_new
            new = Box((first_new, *box.start[1:]), (rows, *box.size[1:]))
            mean = source.mean_row(name)[new.slices[1]].to(TORCH_DTYPES[self.tensors[name].dtype])
            yield new, mean.repeat(rows, 1)

    def _changed(self, name: str, box: Box) -> Iterator[tuple[Box, Tensor]]:
        """The box of a layer's merged weights."""
        rows, columns = self._base.tensors[name].shape
        step = max(1, SLAB_BYTES // (torch.float64.itemsize * columns))
        dtype = TORCH_DTYPES[self.tensors[name].dtype]
        update = self._update(name)
        for first in range(box.start[0] // step * step, box.start[0] + box.size[0], step):
            block = Box((first, 0), (min(step, rows - first), columns))
            common = block.intersection(box)
            assert common is not None
            whole = self._rescaled(name, block, self._sum(name, block, update))
            yield common, whole[common.shifted((-first, 0)).slices].to(dtype)

    def _update(self, name: str) -> tuple[Tensor, Tensor]:
        """scale · B, [O, R], and A, [R, I], in float64."""
        down_RI, up_OR = (
            self._trained.whole(self._part(name, f"lora_{letter}.weight")).double() for letter in "AB"
        )
        return self._scale * up_OR, down_RI

    def _sum(self, name: str, block: Box, update: tuple[Tensor, Tensor]) -> Tensor:
        """W + scale · B A of some whole rows of the stored tensor."""
        up_OR, down_RI = update
        rows = block.slices[0]
        change = down_RI[:, rows].T @ up_OR.T if self._transposed else up_OR[rows] @ down_RI
        for part, slab in self._base.slabs(name, block):
            change[part.shifted((-block.start[0], 0)).slices] += slab
        return change

    def _rescaled(self, name: str, block: Box, whole: Tensor) -> Tensor:
        """With the lengths that DoRA has learned for each output."""
        if self._method != "dora":
            return whole
        magnitude_O = self._trained.whole(self._part(name, "lora_magnitude_vector")).double()
        if self._transposed:
            return whole * (magnitude_O / self._output_norms(name))
        norms_N = torch.linalg.vector_norm(whole, dim=1)
        return whole * (magnitude_O[block.slices[0]] / norms_N)[:, None]

    def _output_norms(self, name: str) -> Tensor:
        """Of a tensor whose columns are the outputs, [O]: all of it has to be read."""
        if name not in self._norms:
            rows, columns = self._base.tensors[name].shape
            step = max(1, SLAB_BYTES // (torch.float64.itemsize * columns))
            update, squares_O = self._update(name), torch.zeros(columns, dtype=torch.float64, device="cpu")
            for first in range(0, rows, step):
                block = Box((first, 0), (min(step, rows - first), columns))
                squares_O += self._sum(name, block, update).square().sum(0)
            self._norms[name] = squares_O.sqrt()
        return self._norms[name]


@contextmanager
def open_weights(checkpoint: Path, manifest: Manifest) -> Iterator[TensorSource]:
    """All weights of a checkpoint.

    Raises:
        InputError: what it has trained cannot be merged into weights. CheckpointError: its base has gone.
    """
    base = Base.in_description(manifest.description)
    with ExitStack() as opened:
        stored = opened.enter_context(TensorFiles.of_checkpoint(checkpoint, manifest))
        if base is None:
            yield stored
            return
        peft, model, vocabulary_size = tuned(checkpoint, manifest)
        yield MergedTensors(opened.enter_context(open_base(base)), stored, peft, model, vocabulary_size)


def tuned(checkpoint: Path, manifest: Manifest) -> tuple[PeftSection, ModelSection, int]:
    """Options, model and rows of tokens of a run with PEFT.

    Raises:
        InputError: its method's result cannot be merged.
    """
    description = manifest.description
    peft = PeftSection.model_validate(description[PEFT])
    problem = not_mergeable(checkpoint, description)
    if problem:
        raise InputError([problem])
    return peft, ModelSection.model_validate(description["model"]), int(str(description[VOCABULARY]))


@contextmanager
def open_base(base: Base) -> Iterator[TensorSource]:
    """All weights of a base.

    Raises:
        InputError, CheckpointError: it has gone, or has changed so much that it has none.
    """
    base.check_presence()
    if is_hugging_face_folder(base.path):
        with TensorFiles.of_folder(open_folder(base.path)) as source:
            yield source
        return
    with open_weights(base.path, manifest_of(base.path)) as source:
        yield source


def manifest_of(checkpoint: Path) -> Manifest:
    """
    Raises:
        CheckpointError: it is not committed.
    """
    found = inspect(checkpoint)
    if found.state != "committed" or found.manifest is None:
        raise CheckpointError(f"{checkpoint}: {found.reason}")
    return found.manifest


def verify_weights(checkpoint: Path, manifest: Manifest) -> None:
    """Reread and hash the weights of a checkpoint, and of the base that it builds on.

    Raises:
        CheckpointError: something is not what was saved, or the base has gone.
    """
    names = {name for name in manifest.tensors if not name.startswith(OPTIMIZER)}
    verify_tensors(checkpoint, manifest, names)
    base = Base.in_description(manifest.description)
    if base is None:
        return
    base.check()
    if not is_hugging_face_folder(base.path):
        verify_weights(base.path, manifest_of(base.path))
