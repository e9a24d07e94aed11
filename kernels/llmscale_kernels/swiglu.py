"""SwiGLU (arXiv:2002.05202): SiLU of one half of the features times the other half."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_and_up: Tensor) -> Tensor:
    """[..., 2F] → [..., F]: `silu(first half) * second half`."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up
