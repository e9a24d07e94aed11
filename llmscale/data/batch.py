"""The unit of work of the engine: one microbatch of token sequences.

Shapes: B sequences in the microbatch, S tokens in a sequence.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One microbatch, in CPU memory as the loader makes it."""

    tokens_BS: Tensor
    """int64, what the model reads."""
    labels_BS: Tensor
    """int64, the token that follows each of `tokens_BS`."""
    loss_mask_BS: Tensor
    """float32, 1 where the label counts and 0 where it is padding."""
    position_ids_BS: Tensor
    """int64, each token's place in its sequence: 0 … S-1."""
