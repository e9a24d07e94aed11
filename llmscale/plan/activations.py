"""What the forward pass keeps for the backward pass, and how many microbatches are kept at once."""

from llmscale.config.schema import Config
from llmscale.plan.parameters import padded_vocabulary_size

LOSS_ROWS = 256
"""Tokens whose logits the loss works on at a time, in fp32."""
LARGEST_LOGITS = 1 << 26
"""Elements that the logits of a microbatch have on a rank at most, in fp32 256 MiB. With more the loss makes
them itself, a few tokens at a time, and once more in its backward pass."""
FEW_LOGITS, FEW_TOKENS = 1 << 24, 64
"""Elements that are there at a time then; and tokens, at least."""


def activation_bytes(config: Config, stage: int, width: int, logits: int) -> int:
    """Kept by a rank of `stage` when it holds most microbatches.

    `width` is the bytes of an element, `logits` those of the logits and all that comes with them: a layer
    that is computed again comes after they are gone, and needs only what is beyond them.
    """
    parallel, train = config.parallel, config.train
    element = train.micro_batch_size * train.sequence_length // parallel.context * width
    layers = config.model.layers // parallel.pipeline // parallel.interleave
    kept = chunks_in_flight(microbatches(config), parallel.pipeline, parallel.interleave, stage)
    layer = layer_elements_per_token(config) * element
    if train.recompute == "full":
        inputs = kept * layers * hidden_elements_per_token(config) * element
        return int(inputs + max(layer - logits, 0))
    final_norm = norm_elements_per_token(config) * element if stage == parallel.pipeline - 1 else 0
    return int(kept * layers * layer + final_norm)


def logits_bytes(config: Config, vocabulary_size: int, width: int) -> int:
    """Logits on a rank of the last stage, whose place their gradient takes, and the fp32 rows of the loss; of
    large ones those of some tokens, and the gradient of the output layer's weight, which is summed in fp32.
    Scores of a head are next to nothing."""
    if config.outputs is not None:
        return 0
    tensor = config.parallel.tensor
    columns = padded_vocabulary_size(vocabulary_size, tensor) // tensor
    tokens = config.train.micro_batch_size * config.train.sequence_length // config.parallel.context
    if tokens * columns > LARGEST_LOGITS and config.zero.stage < 3:
        rows = min(tokens, max(FEW_TOKENS, FEW_LOGITS // columns))
        return (rows * (width + max(width, 4)) + config.model.hidden_size * max(width, 4)) * columns
    return tokens * columns * width + 2 * min(tokens, LOSS_ROWS) * columns * max(width, 4)


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

    What its two norms keep, queries, keys and values, the attention's output, and in the feed-forward layer
    what goes into and comes out of its activation. qwen3 keeps queries and keys as its norms take them, too.
    Column-parallel layers gather their input again in the backward pass where the sequence is split, so
    that copy is not counted. Selective recomputation drops nothing here: fused attention keeps no scores.
    """
    model, tensor = config.model, config.parallel.tensor
    query = model.heads * model.head_size_or_default
    key = model.kv_heads_or_default * model.head_size_or_default
    # Where heads lie together for torch's attention, its output is copied once to lie token by token again.
    # The kernel of CPUs does without.
    rearranged = model.family in ("llama", "mistral") and config.train.micro_batch_size > 1
    projected, attended = query + 2 * key, query * (2 if rearranged else 1)
    turned = query + key if model.family == "qwen3" else 0
    feed_forward = (2 if model.family == "gpt2" else 3) * model.ffn_size_or_default
    norms = 2 * norm_elements_per_token(config)
    return norms + (projected + turned + attended + feed_forward) / tensor


def norm_elements_per_token(config: Config) -> float:
    """A norm keeps its input and its output."""
    return 2 * hidden_elements_per_token(config)
