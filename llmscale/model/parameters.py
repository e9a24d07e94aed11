"""One declaration a parameter: how it is cut, and which boxes of Hugging Face tensors it holds.

Initial weights, gradient sums, gradient norm, checkpoints and export all read it.
"""

import re
from dataclasses import dataclass, field

from llmscale.model.language_model import LanguageModel
from llmscale.model.regions import Box, Region

COLUMN_PARALLEL = ("word_embeddings.weight", "output_layer.weight", "linear_qkv", "linear_fc1")
"""Cut along the first dimension over the tensor ranks."""
ROW_PARALLEL = ("linear_proj.weight", "linear_fc2.weight")
"""Cut along the second dimension."""
_LAYER_PREFIX = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class ParameterDeclaration:
    """What the rest of llmscale needs to know of one local parameter.

    `regions` are this rank's boxes; padding rows of the vocabulary are in none of them.
    """

    local_name: str
    shape: tuple[int, ...]
    """Of the local tensor."""
    regions: tuple[Region, ...] = field(repr=False)
    tensor_replicated: bool
    """Every tensor rank holds the same values."""
    pipeline_replica: bool
    """A second copy, on the last stage, of a tensor that the first stage owns (tied embeddings)."""
    tied: bool
    """One of the two copies of a tied tensor on different stages: their gradients are summed."""

    @property
    def decays(self) -> bool:
        """Weight decay applies: matrices and embeddings, no norms and biases."""
        return len(self.shape) > 1

    def is_written_by(self, tensor_rank: int) -> bool:
        """This rank's copy is the one that a checkpoint stores."""
        return not self.pipeline_replica and (tensor_rank == 0 or not self.tensor_replicated)


def declare_parameters(chunk: LanguageModel) -> dict[str, ParameterDeclaration]:
    """The declaration of each of the chunk's parameters, by local name."""
    return {name: _declare(chunk, name, tuple(p.shape)) for name, p in chunk.named_parameters()}


def _declare(chunk: LanguageModel, local_name: str, shape: tuple[int, ...]) -> ParameterDeclaration:
    column = any(name in local_name for name in COLUMN_PARALLEL)
    row = any(name in local_name for name in ROW_PARALLEL)
    tied_stages = chunk.share_embeddings_and_output_weights and chunk.world.layout.pipeline > 1
    is_output = local_name == "output_layer.weight"
    return ParameterDeclaration(
        local_name=local_name,
        shape=shape,
        regions=tuple(_regions(chunk, local_name, shape, column, row)),
        tensor_replicated=not (column or row),
        pipeline_replica=tied_stages and is_output,
        tied=tied_stages and (is_output or local_name == "embedding.word_embeddings.weight"),
    )


def _regions(
    chunk: LanguageModel, local_name: str, shape: tuple[int, ...], column: bool, row: bool
) -> list[Region]:
    """Rows of the local tensor, part after part, in their Hugging Face tensors."""
    tensor_ranks = chunk.world.layout.tensor
    tensor_rank = chunk.world.coordinates.tensor
    names, transposed = _hugging_face_names(chunk, local_name)
    parts = _row_parts(chunk, local_name, shape[0] * (tensor_ranks if column else 1))
    others = (shape[1] * tensor_ranks if row else shape[1],) if len(shape) > 1 else ()
    first_other = (shape[1] * tensor_rank if row else 0,) if len(shape) > 1 else ()
    fused = len(names) < len(parts)
    regions: list[Region] = []
    local_start = part_start = 0
    for index, rows in enumerate(parts):
        local_rows = -(-shape[0] * rows // sum(parts)) if column else rows
        start = local_rows * tensor_rank if column else 0
        if "word_embeddings" in local_name or "output_layer" in local_name:
            local_rows, rows = _vocabulary_rows(chunk, shape[0])
            start = shape[0] * tensor_rank
        hf_shape = (sum(parts) if fused else rows, *others)
        region = Region(
            name=names[0] if fused else names[index],
            shape=hf_shape[::-1] if transposed else hf_shape,
            local=Box((local_start, *(0 for _ in others)), (local_rows, *shape[1:])),
            box=Box(((part_start if fused else 0) + start, *first_other), (local_rows, *shape[1:])),
            transpose=transposed,
        )
        if transposed:
            region = Region(region.name, region.shape, region.local, region.box.transposed(), True)
        if local_rows:
            regions.append(region)
        local_start += local_rows
        part_start += rows
    return regions


def _vocabulary_rows(chunk: LanguageModel, local_rows: int) -> tuple[int, int]:
    """True rows of the vocabulary on this rank, and on all."""
    size = chunk.true_vocabulary_size
    return max(0, min(local_rows, size - local_rows * chunk.world.coordinates.tensor)), size


def _row_parts(chunk: LanguageModel, local_name: str, rows: int) -> list[int]:
    """Rows, over all ranks, of the parts that lie one after the other in the local tensor."""
    model = chunk.model_section
    if "linear_qkv" in local_name:
        head = model.head_size_or_default
        return [model.heads * head, model.kv_heads_or_default * head, model.kv_heads_or_default * head]
    if "linear_fc1" in local_name and chunk.family.gated:
        return [model.ffn_size_or_default] * 2
    return [rows]


def _hugging_face_names(chunk: LanguageModel, local_name: str) -> tuple[tuple[str, ...], bool]:
    found = _LAYER_PREFIX.match(local_name)
    if found is None:
        key, layer = local_name, 0
    else:
        key, layer = local_name[found.end() :], chunk.decoder.layers[int(found.group(1))].layer_number - 1
    if key == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
        key = "embedding.word_embeddings.weight"
    names = tuple(name.format(layer=layer) for name in chunk.family.names[key])
    return names, key.endswith(chunk.family.transposed) if chunk.family.transposed else False
