"""What operations cannot do without: bytes that have to move between memory and processor, and FLOPs.

Of forward and backward together, in bf16, where forward has to end before backward begins. Floors are never
too high: what does not grow with tokens × features (weights of norms, angles of positions, a number a token)
is left out, and nothing is counted that is computed again.

Shapes: T tokens, H hidden size, F features of the feed-forward layer, V vocabulary, B rows, S sequence,
N query heads, K key-value heads, D head size.
"""

from dataclasses import dataclass

from bench.gpu.ceilings import Ceilings
from llmscale.config.schema import ModelSection
from llmscale.plan.flops import mean_tokens_seen
from llmscale.plan.parameters import model_parameters

WIDTH = 2
"""Bytes of a bf16 number."""


@dataclass(frozen=True)
class Floor:
    moved_bytes: int
    flops: float = 0.0
    """Of matrix products; those of single elements cost nothing beside their bytes."""

    def seconds(self, ceilings: Ceilings) -> float:
        """The least that it takes on a device that can do so much: memory and products work side by side."""
        return max(self.moved_bytes / ceilings.bytes_per_second, self.flops / ceilings.flops_per_second)

    def is_of_memory(self, ceilings: Ceilings) -> bool:
        """Whether the bytes take longer than the products."""
        return self.moved_bytes / ceilings.bytes_per_second >= self.flops / ceilings.flops_per_second


def norm(tokens: int, hidden: int) -> Floor:
    """Forward reads x and writes y; backward reads x and ∂y and writes ∂x."""
    return Floor((2 + 3) * tokens * hidden * WIDTH)


def norm_of_sum(tokens: int, hidden: int) -> Floor:
    """Forward reads both summands and writes the sum and its norm; backward reads the sum and both gradients,
    and writes one, that of either summand."""
    return Floor((4 + 4) * tokens * hidden * WIDTH)


def swiglu(tokens: int, features: int) -> Floor:
    """Forward reads [T, 2F] and writes [T, F]; backward reads both again, the latter's gradient, and writes
    the gradient of [T, 2F]."""
    return Floor((3 + 5) * tokens * features * WIDTH)


def rotary(tokens: int, heads: int, kv_heads: int, head_size: int) -> Floor:
    """Forward reads and writes queries and keys, and leaves values where they are; backward reads the
    gradients of all three and writes them as one."""
    turned, all_three = heads + kv_heads, heads + 2 * kv_heads
    return Floor((2 * turned + 2 * all_three) * tokens * head_size * WIDTH)


def cross_entropy(tokens: int, vocabulary: int) -> Floor:
    """Forward reads the logits; backward reads them and writes their gradient."""
    return Floor((1 + 2) * tokens * vocabulary * WIDTH)


def attention(
    rows: int, sequence: int, heads: int, kv_heads: int, head_size: int, documents: int = 1
) -> Floor:
    """Causal, of rows of so many documents of one length. Forward reads q, k, v and writes o; backward reads
    these and ∂o, and writes ∂q, ∂k and ∂v.

    Two products forward, four backward: ∂v, the gradient of the weights, ∂q, ∂k.
    """
    of_query, of_key = heads * head_size, kv_heads * head_size
    forward = 2 * of_query + 2 * of_key
    backward = 4 * of_query + 4 * of_key
    tokens = rows * sequence
    seen = mean_tokens_seen(sequence // documents, window=None)
    return Floor((forward + backward) * tokens * WIDTH, 6 * 2 * tokens * seen * of_query)


def linear_cross_entropy(tokens: int, hidden: int, vocabulary: int) -> Floor:
    """Forward reads hidden states [T, H] and weight [V, H]; backward reads both and writes both gradients.
    Logits need not be there at all.

    Three products: the logits, and the two gradients.
    """
    return Floor(3 * (tokens + vocabulary) * hidden * WIDTH, 3 * 2 * tokens * hidden * vocabulary)


def decoding_step(model: ModelSection, vocabulary: int, rows: int, tokens_behind: float) -> Floor:
    """Each row gets one token: all weights are read once, and the keys and values of `tokens_behind` tokens a
    row. The embedding counts where it is the output layer, too; else only a line a row is read."""
    count = model_parameters(model, vocabulary, sequence_length=1)
    weights = count.total - count.positions - (0 if model.tie_embeddings_or_default else count.embedding)
    cached = rows * tokens_behind * model.layers * 2 * model.kv_heads_or_default * model.head_size_or_default
    return Floor(int((weights + cached) * WIDTH))
