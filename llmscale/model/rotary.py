"""The angles of rotary position embedding, with scaling for long contexts."""

import math

import torch
from torch import Tensor

from llmscale.config.schema import RopeScaling


class RotaryTable:
    """Cosines and sines of every position, computed in float64, kept in the dtypes asked for.

    No `torch.nn.Module`: a cast of the model to bfloat16 must not touch the angles.
    """

    def __init__(
        self, head_size: int, positions: int, base: float, scaling: RopeScaling | None, device: torch.device
    ) -> None:
        self._frequency_D = inverse_frequencies(head_size, base, scaling)
        self._positions = positions
        self._device = device
        self._tables_2PD: dict[torch.dtype, Tensor] = {}

    def at(self, position_ids_BS: Tensor, dtype: torch.dtype) -> Tensor:
        """Cosine and sine as [2, S, B or 1, D] in `dtype`; B is 1 where all rows have the same positions."""
        if dtype not in self._tables_2PD:
            self._tables_2PD[dtype] = self._table(dtype)
        if position_ids_BS.stride(0) == 0 or len(position_ids_BS) == 1:
            position_ids_BS = position_ids_BS[:1]
        return self._tables_2PD[dtype][:, position_ids_BS.T]

    def extend(self, positions: int) -> None:
        """Reach so many positions further."""
        self._positions += positions
        self._tables_2PD.clear()

    def _table(self, dtype: torch.dtype) -> Tensor:
        positions_P = torch.arange(self._positions, dtype=torch.float64)
        angle_PD = torch.outer(positions_P, self._frequency_D).repeat(1, 2)
        return torch.stack((angle_PD.cos(), angle_PD.sin())).to(self._device, dtype)


def inverse_frequencies(head_size: int, base: float, scaling: RopeScaling | None) -> Tensor:
    """Radians per position of each pair of dimensions, [head_size / 2], float64.

    Linear scaling slows all turns by its factor. Llama 3's slows the slow ones, leaves the fast ones, and
    interpolates between (arXiv:2407.21783; the formulas are those of transformers' rope types).
    """
    frequency_D = base ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    if scaling is None:
        return frequency_D
    if scaling.type == "linear":
        return frequency_D / scaling.factor
    turns_D = scaling.original_max_positions * frequency_D / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep_D = ((turns_D - low) / (high - low)).clamp(0, 1)
    return keep_D * frequency_D + (1 - keep_D) * frequency_D / scaling.factor
