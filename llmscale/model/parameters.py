"""One declaration a parameter: how it is cut, and which boxes of Hugging Face tensors it holds.

Initial weights, gradient sums, gradient norm, checkpoints and export all read it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmscale.model.declaration import ParameterDeclaration
from llmscale.model.language_model import LanguageModel
from llmscale.model.layer import Layer
from llmscale.model.regions import Box, Region
from llmscale.model.tensors import SCORE, part_rows

VOCABULARY = ("word_embeddings.weight", "output_layer.weight")
"""Cut along the vocabulary, the first dimension, over the tensor ranks; the last rows may be padding."""
COLUMN_PARALLEL = (
    *VOCABULARY,
    "linear_qkv.weight",
    "linear_qkv.bias",
    "linear_fc1.weight",
    "linear_fc1.bias",
)
"""Cut along the first dimension over the tensor ranks."""
ROW_PARALLEL = ("linear_proj.weight", "linear_fc2.weight")
"""Cut along the second dimension."""
_LAYER_PREFIX = re.compile(r"decoder\.layers\.(\d+)\.")


def declare_parameters(chunk: LanguageModel) -> dict[str, ParameterDeclaration]:
    """The declaration of each of the chunk's parameters, by local name."""
    return {
        name: chunk.added.get(name) or _declare(chunk, name, tuple(p.shape))
        for name, p in chunk.named_parameters()
    }


def _declare(chunk: LanguageModel, local_name: str, shape: tuple[int, ...]) -> ParameterDeclaration:
    tied_stages = chunk.share_embeddings_and_output_weights and chunk.world.layout.pipeline > 1
    is_output = local_name == "output_layer.weight"
    return ParameterDeclaration(
        local_name=local_name,
        shape=shape,
        regions=tuple(_regions(chunk, local_name, shape)),
        tensor_replicated=not local_name.endswith(COLUMN_PARALLEL + ROW_PARALLEL),
        pipeline_replica=tied_stages and is_output,
        tied=tied_stages and (is_output or local_name == "embedding.word_embeddings.weight"),
    )


@dataclass(frozen=True)
class _Part:
    """Rows that lie together in the local tensor and in one Hugging Face tensor, taken over all ranks."""

    name: str
    rows: int
    first_row: int
    """Where they begin in the Hugging Face tensor."""
    tensor_rows: int
    """Rows of that whole tensor."""


def _regions(chunk: LanguageModel, local_name: str, shape: tuple[int, ...]) -> Iterator[Region]:
    """The local tensor's rows, part after part, as boxes of their Hugging Face tensors."""
    ranks, rank = chunk.world.layout.tensor, chunk.world.coordinates.tensor
    columns = shape[1:]
    whole_columns, first_column = columns, tuple(0 for _ in columns)
    if local_name.endswith(ROW_PARALLEL):
        whole_columns, first_column = (columns[0] * ranks,), (columns[0] * rank,)
    is_cut = local_name.endswith(COLUMN_PARALLEL)
    transpose = local_name.endswith(chunk.family.transposed)
    local_row = 0
    for part in _parts(chunk, local_name, shape[0] * ranks if is_cut else shape[0]):
        rows = part.rows // ranks if is_cut else part.rows
        first_row = part.first_row + (rows * rank if is_cut else 0)
        true_rows = max(0, min(rows, part.tensor_rows - first_row))
        size = (true_rows, *columns)
        whole = (part.tensor_rows, *whole_columns)
        box = Box((first_row, *first_column), size)
        if true_rows:
            yield Region(
                name=part.name,
                shape=whole[::-1] if transpose else whole,
                local=Box((local_row, *(0 for _ in columns)), size),
                box=box.transposed() if transpose else box,
                transpose=transpose,
            )
        local_row += rows


def _parts(chunk: LanguageModel, local_name: str, rows: int) -> list[_Part]:
    """What a local tensor of `rows` rows (of all ranks together) is made of, in order."""
    names = _hugging_face_names(chunk, local_name)
    if local_name.endswith(VOCABULARY):
        return [_Part(names[0], rows, 0, chunk.true_vocabulary_size)]
    sizes = part_rows(chunk.model_section, chunk.family, local_name, rows)
    if len(names) == len(sizes):
        return [_Part(name, size, 0, size) for name, size in zip(names, sizes)]
    # One Hugging Face tensor holds all parts, one after the other.
    return [_Part(names[0], size, sum(sizes[:index]), sum(sizes)) for index, size in enumerate(sizes)]


def _hugging_face_names(chunk: LanguageModel, local_name: str) -> tuple[str, ...]:
    if local_name == SCORE:
        return (SCORE,)
    found = _LAYER_PREFIX.match(local_name)
    key, layer = local_name, 0
    if found is not None:
        key, layer = local_name[found.end() :], _layer_number(chunk, int(found.group(1)))
    if key == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
        key = "embedding.word_embeddings.weight"
    return tuple(name.format(layer=layer) for name in chunk.family.names[key])


def _layer_number(chunk: LanguageModel, index: int) -> int:
    """Number in the whole model, from 0, of the chunk's layer `index`. Megatron counts from 1."""
    layer = chunk.decoder.layers[index]
    assert isinstance(layer, Layer)
    return layer.layer_number - 1
