"""The Hugging Face tensors that a model's weights are, told from its config alone. No torch."""

from llmscale.config.schema import ModelSection
from llmscale.model.families.family import Family
from llmscale.model.families.table import family as family_named

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
POSITIONS = "embedding.position_embeddings.weight"
SCORE = "score.weight"
"""Of the head that stands in place of the output, here and in transformers."""

Shape = tuple[int, ...]


def part_rows(model: ModelSection, family: Family, local_name: str, rows: int) -> list[int]:
    """How many of the `rows` rows of a local tensor (of all ranks together) belong to each of its parts."""
    if "linear_qkv" in local_name:
        head = model.head_size_or_default
        return [model.heads * head, model.kv_heads_or_default * head, model.kv_heads_or_default * head]
    if "linear_fc1" in local_name and family.gated:
        return [model.ffn_size_or_default] * 2
    return [rows]


def hugging_face_shapes(
    model: ModelSection, vocabulary_size: int, positions: int, outputs: int | None = None
) -> dict[str, Shape]:
    """Name and true shape of each tensor that a checkpoint of this model holds.

    `positions` counts where they are learned; `outputs` are those of a head in place of the output layer.
    """
    family = family_named(model.family)
    found: dict[str, Shape] = {} if outputs is None else {SCORE: (outputs, model.hidden_size)}
    for local_name, names in family.names.items():
        if local_name == OUTPUT and (model.tie_embeddings_or_default or outputs is not None):
            continue
        rows, *columns = _local_shape(model, family, local_name, vocabulary_size, positions)
        parts = part_rows(model, family, local_name, rows)
        parts = parts if len(parts) == len(names) else [sum(parts)]
        layers = range(model.layers) if "{layer}" in names[0] else range(1)
        for layer in layers:
            for name, size in zip(names, parts, strict=True):
                shape = (size, *columns)
                is_turned = local_name.endswith(family.transposed)
                found[name.format(layer=layer)] = shape[::-1] if is_turned else shape
    return found


def _local_shape(
    model: ModelSection, family: Family, local_name: str, vocabulary_size: int, positions: int
) -> Shape:
    """Of the tensor as Megatron's layers hold it on a single rank, without padding."""
    hidden, ffn, head = model.hidden_size, model.ffn_size_or_default, model.head_size_or_default
    if local_name in (EMBEDDING, OUTPUT):
        return vocabulary_size, hidden
    if local_name == POSITIONS:
        return positions, hidden
    if local_name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
        return (head,)
    matrices = {
        "linear_qkv": ((model.heads + 2 * model.kv_heads_or_default) * head, hidden),
        "linear_proj": (hidden, model.heads * head),
        "linear_fc1": (2 * ffn if family.gated else ffn, hidden),
        "linear_fc2": (hidden, ffn),
    }
    for layer, shape in matrices.items():
        if layer in local_name:
            return shape if local_name.endswith("weight") else shape[:1]
    return (hidden,)


def not_begun_from(model: ModelSection, outputs: int | None) -> list[str]:
    """Names of the tensors that a new model does not take from the one that it begins from: its head, which
    is to tell something else, and the output layer, which it has not. None for a model that writes."""
    return [] if outputs is None else [SCORE, *family_named(model.family).names[OUTPUT]]


def vocabulary_tensors(model: ModelSection) -> list[str]:
    """Names of the tensors with one row a token."""
    names = family_named(model.family).names
    return [*names[EMBEDDING], *([] if model.tie_embeddings_or_default else names[OUTPUT])]
