"""How many parameters a model has, whole and on each pipeline stage and tensor rank."""

from dataclasses import dataclass, fields

from llmscale.config.schema import ModelSection

VOCABULARY_MULTIPLE = 128
"""Rows of the embedding that each tensor rank holds are a multiple of this: matrix units like whole tiles."""


def padded_vocabulary_size(vocabulary_size: int, tensor: int) -> int:
    """Rows that the embedding has in memory: the next multiple of 128 × tensor ranks."""
    multiple = VOCABULARY_MULTIPLE * tensor
    return -(-vocabulary_size // multiple) * multiple


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by kind. `output` is 0 where the embedding serves as output on the same rank."""

    embedding: int = 0
    positions: int = 0
    attention: int = 0
    feed_forward: int = 0
    norms: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "ParameterCount") -> "ParameterCount":
        return ParameterCount(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )

    def times(self, count: int) -> "ParameterCount":
        return ParameterCount(*(getattr(self, field.name) * count for field in fields(self)))


def layer_parameters(model: ModelSection, tensor: int = 1) -> ParameterCount:
    """One transformer layer on one of `tensor` ranks: matrices are shared out, norms are on every rank."""
    hidden, ffn, head_size = model.hidden_size, model.ffn_size_or_default, model.head_size_or_default
    query = model.heads * head_size
    query_key_value = query + 2 * model.kv_heads_or_default * head_size
    attention = (hidden * query_key_value + query * hidden) // tensor
    if model.family == "gpt2":
        # A column-parallel bias is shared out as its matrix is; a row-parallel one is on every rank.
        attention += query_key_value // tensor + hidden
        feed_forward = (2 * hidden * ffn + ffn) // tensor + hidden
        norms = 2 * 2 * hidden
    else:
        feed_forward = 3 * hidden * ffn // tensor
        norms = 2 * hidden + (2 * head_size if model.family == "qwen3" else 0)
    return ParameterCount(attention=attention, feed_forward=feed_forward, norms=norms)


def stage_parameters(
    model: ModelSection,
    vocabulary_size: int,
    sequence_length: int,
    tensor: int,
    pipeline: int,
    stage: int,
    outputs: int | None = None,
) -> ParameterCount:
    """One tensor rank of pipeline stage `stage`, vocabulary padding included.

    The first stage holds the embeddings, the last one the final norm and the output; where embedding and
    output are tied but on two stages, both hold the matrix. A head of so many `outputs` in place of the
    output is on every tensor rank.
    """
    hidden = model.hidden_size
    first, last = stage == 0, stage == pipeline - 1
    vocabulary = padded_vocabulary_size(vocabulary_size, tensor) // tensor * hidden
    positions = _learned_positions(model, sequence_length) * hidden
    output = 0 if model.tie_embeddings_or_default and pipeline == 1 else vocabulary
    if outputs is not None:
        output = outputs * hidden
    ends = ParameterCount(
        embedding=vocabulary if first else 0,
        positions=positions if first else 0,
        norms=_norm_size(model) if last else 0,
        output=output if last else 0,
    )
    return layer_parameters(model, tensor).times(model.layers // pipeline) + ends


def model_parameters(
    model: ModelSection, vocabulary_size: int, sequence_length: int, outputs: int | None = None
) -> ParameterCount:
    """The whole model in its true shapes: what its model card says.

    `sequence_length` counts only where gpt2's `max_positions` is left out. `outputs`: of a head in place of
    the output.
    """
    hidden = model.hidden_size
    vocabulary = vocabulary_size * hidden
    output = 0 if model.tie_embeddings_or_default else vocabulary
    return layer_parameters(model).times(model.layers) + ParameterCount(
        embedding=vocabulary,
        positions=_learned_positions(model, sequence_length) * hidden,
        norms=_norm_size(model),
        output=output if outputs is None else outputs * hidden,
    )


def _learned_positions(model: ModelSection, sequence_length: int) -> int:
    return (model.max_positions or sequence_length) if model.family == "gpt2" else 0


def _norm_size(model: ModelSection) -> int:
    """LayerNorm has a bias beside its weight, RMSNorm has not."""
    return model.hidden_size * (2 if model.family == "gpt2" else 1)
