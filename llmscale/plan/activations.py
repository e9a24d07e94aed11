"""What the forward pass keeps for the backward pass, and how many microbatches are kept at once."""

from llmscale.config.schema import Config
from llmscale.plan.parameters import padded_vocabulary_size

LOSS_ROWS = 256
"""Tokens whose logits the loss works on at a time, in fp32."""


def activation_bytes(config: Config, stage: int, width: int) -> int:
    """Kept by a rank of `stage` when it holds most microbatches. `width` is the bytes of an element."""
    parallel, train = config.parallel, config.train
    tokens = train.micro_batch_size * train.sequence_length // parallel.context
    layers = config.model.layers // parallel.pipeline // parallel.interleave
    kept = chunks_in_flight(microbatches(config), parallel.pipeline, parallel.interleave, stage)
    layer = layer_elements_per_token(config) * tokens * width
    if train.recompute == "full":
        # The inputs of all layers, and all of the one layer that is being computed again.
        return int(kept * layers * hidden_elements_per_token(config) * tokens * width + layer)
    return int(kept * layers * layer)


def logits_bytes(config: Config, vocabulary_size: int, width: int) -> int:
    """Logits and their gradient on a rank of the last stage, and the fp32 rows that the loss works on."""
    tensor = config.parallel.tensor
    columns = padded_vocabulary_size(vocabulary_size, tensor) // tensor
    tokens = config.train.micro_batch_size * config.train.sequence_length // config.parallel.context
    return 2 * tokens * columns * width + 2 * min(tokens, LOSS_ROWS) * columns * max(width, 4)


def microbatches(config: Config) -> int:
    """Of one step, on one model replica."""
    return config.train.global_batch_size // (config.train.micro_batch_size * config.data_parallel)


def chunks_in_flight(count: int, pipeline: int, interleave: int, stage: int) -> int:
    """Forward passes of a model chunk whose backward pass is still to come, at most, on one stage.

    1F1B (arXiv:2104.04473): a stage runs ahead by the stages behind it, itself included. Interleaved, each
    microbatch passes `interleave` chunks, and a stage runs ahead by two for each stage behind it and by
    a whole round of the pipeline for each further chunk.
    """
    if interleave == 1:
        return min(count, pipeline - stage)
    return min(count * interleave, 2 * (pipeline - stage - 1) + (interleave - 1) * pipeline + 1)


def bubble(count: int, pipeline: int, interleave: int) -> float:
    """Share of a step in which a stage waits for others."""
    waiting = (pipeline - 1) / interleave
    return waiting / (count + waiting)


def hidden_elements_per_token(config: Config) -> float:
    """Elements of one hidden state on one rank."""
    return config.model.hidden_size / (config.parallel.tensor if config.parallel.sequence else 1)


def layer_elements_per_token(config: Config) -> float:
    """Elements that one layer keeps a token, on one tensor rank.

    Inputs and outputs of both norms, the fused query-key-value projection, turned queries and keys, the
    attention's output, and in the feed-forward layer what goes into and comes out of its activation.
    Column-parallel layers keep their whole input even where the sequence is split: it is gathered
    again in the backward pass, so that copy is not counted. Selective recomputation drops nothing
    here: fused attention keeps no scores that could be dropped.
    """
    model, tensor = config.model, config.parallel.tensor
    query, key = (
        model.heads * model.head_size_or_default,
        model.kv_heads_or_default * model.head_size_or_default,
    )
    projected = query + 2 * key
    attention = projected + query
    if model.family != "gpt2":
        attention += query + key
    if model.family == "qwen3":
        attention += query + key
    feed_forward = (2 if model.family == "gpt2" else 4) * model.ffn_size_or_default
    hidden_states = (
        4 if model.family == "gpt2" else NORM_STATES[config.train.precision]
    ) * hidden_elements_per_token(config)
    return hidden_states + (attention + feed_forward) / tensor


NORM_STATES = {"fp32": 6, "bf16": 10, "fp64": 6}
"""Hidden states that two RMSNorms keep: input, output and the normalised input, which bf16 has in fp32."""
