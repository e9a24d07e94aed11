"""Floating-point operations that a token costs: what utilisation (MFU) is measured against."""

from llmscale.config.schema import ModelSection


def flops_per_token(
    model: ModelSection, sequence_length: int, vocabulary_size: int, outputs: int | None = None
) -> float:
    """Forward and backward operations a token, a multiply-add counted as two.

    Matrix products only, with the true vocabulary size and causal attention at what it needs: each token
    sees the tokens before it and itself. Nothing computed twice (recomputation, padding) is counted, so
    utilisation never rises by doing needless work. The backward pass costs twice the forward pass.

    `outputs`: of a head in place of the output.
    """
    columns = vocabulary_size if outputs is None else outputs
    return 3 * forward_flops_per_token(model, sequence_length, columns)


def forward_flops_per_token(model: ModelSection, sequence_length: int, vocabulary_size: int) -> float:
    hidden, head_size = model.hidden_size, model.head_size_or_default
    query = model.heads * head_size
    attention_matrices = hidden * (2 * query + 2 * model.kv_heads_or_default * head_size)
    feed_forward_matrices = (2 if model.family == "gpt2" else 3) * hidden * model.ffn_size_or_default
    # Scores and their product with the values: two multiply-adds a seen token and query element.
    core_attention = 2 * query * mean_tokens_seen(sequence_length, model.sliding_window)
    layer = attention_matrices + feed_forward_matrices + core_attention
    return 2 * (model.layers * layer + hidden * vocabulary_size)


def mean_tokens_seen(sequence_length: int, window: int | None) -> float:
    """Tokens that a token of a causal sequence attends to, itself included, averaged over the sequence."""
    if window is None or window >= sequence_length:
        return (sequence_length + 1) / 2
    growing = window * (window + 1) / 2
    return (growing + (sequence_length - window) * window) / sequence_length
