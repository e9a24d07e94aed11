"""What tells one model family from another: a few switches, and the Hugging Face names of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    `names` maps a local parameter (of a layer, without the layer's prefix) to the Hugging Face tensors
    that it is made of, in order; `{layer}` stands for the layer's number from 0. Where query, key and
    value (or gate and up) have one name together, they lie one after the other in that tensor.
    """

    name: str
    names: Mapping[str, tuple[str, ...]]
    layer_norm: bool = False
    """LayerNorm with a bias; else RMSNorm."""
    gated: bool = True
    """SwiGLU; else GELU in its tanh form."""
    biases: bool = False
    rotary: bool = True
    """Rotary positions; else learned ones."""
    query_key_norm: bool = False
    transposed: tuple[str, ...] = ()
    """Endings of local names whose Hugging Face tensors are stored the other way round."""
