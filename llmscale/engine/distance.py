"""AdamW with a decoupled pull towards the weights that training started from (after arXiv:1802.01483).

Before each update w ← w - lr · λ · (w - start), as decoupled weight decay does it with 0 in place of the
start (arXiv:1711.05101). The start is kept beside the moments, so ZeRO's partitions cut it as they cut those,
and checkpoints store it and hand it on to other layouts.
"""

from collections.abc import Callable
from typing import Any

import torch

START = "start"
"""Key of the optimizer's state of a tensor."""


class PulledAdamW(torch.optim.AdamW):
    """AdamW; a tensor whose state has a `START` is pulled there.

    Args:
        penalty: λ.
        options: as of `torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict[str, object]], penalty: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.penalty = penalty

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            weight = float(group["lr"]) * self.penalty
            for tensor in group["params"]:
                start = self.state[tensor].get(START) if tensor in self.state else None
                if start is not None and tensor.grad is not None:
                    tensor.lerp_(start, weight)
        return super().step(closure)
