"""Keys and values of the tokens that rows of text have behind them, for one layer.

Each row has its own length, and begins at place 0; a learned prefix lies before its first token.

Shapes: S tokens of a prompt, R prompts, B rows, N heads, K key-value heads, T places of a row, D head size,
P tokens of a prefix.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from llmscale_kernels import decode
from torch import Tensor


@dataclass(frozen=True)
class Beginnings:
    """The tokens that come are prompts, padded at their ends, from which rows begin."""

    rows_B: Tensor
    """Rows that begin, int64."""
    prompts_B: Tensor
    """Of each the prompt that it begins with: rows may share one."""


@dataclass(frozen=True)
class NextTokens:
    """One token comes for each of the first rows."""

    rows_B: Tensor
    """0, 1, 2, …"""
    places_B: Tensor
    """Where it belongs, int64."""
    prefix: int
    """Places of the learned prefix."""
    window: int | None
    """How many of the others it sees, the own one included."""
    longest: int
    """Places that are in use, of the longest of them."""

    @functools.cached_property
    def seen_B1T(self) -> Tensor:
        """Whether a row's token sees a place."""
        places_T = torch.arange(self.longest, device=self.places_B.device)
        seen_BT = places_T <= self.places_B[:, None]
        if self.window is not None:
            seen_BT &= (places_T > self.places_B[:, None] - self.window) | (places_T < self.prefix)
        return seen_BT[:, None]


class KeyValueCache:
    """[B, K, T, D] each of keys and values.

    Args:
        shape: of both.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        # Not empty: what is not seen has the weight 0, and 0 times what memory may hold is not always 0.
        self.keys_BKTD, self.values_BKTD = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.coming: Beginnings | NextTokens | None = None
        """What the tokens of the forward pass at hand are."""

    def begin(
        self, keys_SRKD: Tensor, values_SRKD: Tensor, prefix: tuple[Tensor, Tensor] | None, coming: Beginnings
    ) -> None:
        """Keep what prompts have left behind; what padding has is never seen."""
        first = 0
        if prefix is not None:
            first = len(prefix[0])
            for kept, learned_PKD in zip((self.keys_BKTD, self.values_BKTD), prefix):
                kept[coming.rows_B, :, :first] = learned_PKD.transpose(0, 1)
        last = first + len(keys_SRKD)
        self.keys_BKTD[coming.rows_B, :, first:last] = keys_SRKD.permute(1, 2, 0, 3)[coming.prompts_B]
        self.values_BKTD[coming.rows_B, :, first:last] = values_SRKD.permute(1, 2, 0, 3)[coming.prompts_B]

    def attend(self, query_1BND: Tensor, key_1BKD: Tensor, value_1BKD: Tensor, coming: NextTokens) -> Tensor:
        """Keep the keys and values of the tokens that come, and attend to all that each sees:
        [1, B, N × D]."""
        caches = (self.keys_BKTD, self.values_BKTD)
        if decode.fits(query_1BND[0], self.keys_BKTD):
            new = (query_1BND[0], key_1BKD[0], value_1BKD[0])
            attended = decode.decode(*new, *caches, coming.places_B, coming.prefix, coming.window)
        else:
            for kept, new in zip(caches, (key_1BKD, value_1BKD)):
                kept[coming.rows_B, :, coming.places_B] = new[0]
            rows, kv_heads, head_size = key_1BKD.shape[1:]
            # Heads that share keys stand in a row as if they were a sequence, so that nothing is repeated.
            attended = F.scaled_dot_product_attention(
                query_1BND.reshape(rows, kv_heads, -1, head_size),
                *(kept[:rows, :, : coming.longest] for kept in caches),
                attn_mask=coming.seen_B1T[:, None],
            )
        return attended.reshape(1, len(coming.rows_B), -1)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Rows `sources` take the places of `targets`."""
        for kept in (self.keys_BKTD, self.values_BKTD):
            kept[targets] = kept[sources]
