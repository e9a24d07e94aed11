"""While texts are written weights stay as they are, so that a copy in the order of the processor pays."""

import contextlib
from collections.abc import Iterator, Sequence

from llmscale_kernels import matmul
from torch import Tensor

from llmscale.model.language_model import LanguageModel
from llmscale.model.linear import ColumnParallelLinear, RowParallelLinear

FROM_ROWS = 4
"""At a time; with fewer, reading a weight takes as long as the whole product."""


@contextlib.contextmanager
def packed_weights(chunks: Sequence[LanguageModel], rows: int) -> Iterator[None]:
    """The linear layers of the chunks have copies of their weights, where that is quicker; as much again.
    Nobody may change the weights until they are gone, at the end.

    Args:
        rows: that are written at a time.
    """
    filled: list[ColumnParallelLinear | RowParallelLinear] = []
    try:
        if rows >= FROM_ROWS:
            for chunk in chunks:
                for linear, weight in _linears(chunk):
                    linear.packed = matmul.pack(weight, rows)
                    filled.append(linear)
        yield
    finally:
        for linear in filled:
            linear.packed = None


def _linears(chunk: LanguageModel) -> Iterator[tuple[ColumnParallelLinear | RowParallelLinear, Tensor]]:
    output = getattr(chunk, "output_layer", None)  # the last chunk's
    for module in chunk.modules():
        if not isinstance(module, ColumnParallelLinear | RowParallelLinear):
            continue
        weight = chunk.output_weight if module is output else module.weight
        assert weight is not None
        yield module, weight
