"""The C++ kernels of CPUs beside torch's own operations.

    python -m bench.kernels [--threads N] [--turns N]

Milliseconds of a call, the median of turns in which both go one after the other, forward and backward. Sizes
are those of `llama_32m` with 4 rows of 512 tokens; decoding is of 64 rows with 256 tokens behind them.
"""

import argparse
import os
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from llmscale_kernels.attention import attention
from llmscale_kernels.cpu import library
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.decode import decode
from llmscale_kernels.norm import rms_norm
from llmscale_kernels.rotary import rotate, rotate_reference
from llmscale_kernels.swiglu import swiglu, swiglu_reference
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.products import side_by_side

SEQUENCE, ROWS, HEADS, HEAD_SIZE, HIDDEN, FEATURES, VOCABULARY = 512, 4, 8, 64, 512, 1536, 8192
PACKED = (100, 37, 150, 64, 161)
"""Documents of a row."""

Work = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("kernel", "type", "torch", "llmscale", "ratio")
    for dtype in (torch.float32, torch.bfloat16):
        for name, theirs, ours in contenders(dtype):
            milliseconds = [1e3 * seconds for seconds in side_by_side(theirs, ours, options.turns)]
            ratio = milliseconds[0] / milliseconds[1]
            shown = str(dtype).removeprefix("torch.")
            table.add_row(name, shown, *(f"{one:.2f}" for one in milliseconds), f"{ratio:.2f}")
    Console().print(table)
    print(f"{options.threads} threads; {library.choice().reason}")


def contenders(dtype: torch.dtype) -> Iterator[tuple[str, Work, Work]]:
    """Name, torch's and ours."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).requires_grad_()

    query, key, value = (made(ROWS, HEADS, SEQUENCE, HEAD_SIZE) for _ in range(3))
    lengths = ((SEQUENCE,),) * ROWS
    yield (
        "attention",
        both_ways(
            lambda *x: F.scaled_dot_product_attention(*x, is_causal=True).permute(2, 0, 1, 3).flatten(2),
            query,
            key,
            value,
        ),
        both_ways(
            lambda *x: attention(*(t.permute(2, 0, 1, 3) for t in x), lengths).flatten(2), query, key, value
        ),
    )
    packed = (PACKED,) * ROWS
    yield (
        "attention, 5 documents a row",
        both_ways(one_by_one, query, key, value),
        both_ways(
            lambda *x: attention(*(t.permute(2, 0, 1, 3) for t in x), packed).flatten(2), query, key, value
        ),
    )
    hidden, weight = made(SEQUENCE, ROWS, HIDDEN), made(HIDDEN)
    yield (
        "RMSNorm",
        both_ways(lambda x, w: F.rms_norm(x, (HIDDEN,), w, 1e-5), hidden, weight),
        both_ways(lambda x, w: rms_norm(x, w, 1e-5), hidden, weight),
    )
    mixed = made(SEQUENCE, ROWS, 2 * FEATURES)
    yield "SwiGLU", both_ways(swiglu_reference, mixed), both_ways(swiglu, mixed)
    heads, angles = made(SEQUENCE, ROWS, HEADS, HEAD_SIZE), torch.randn(SEQUENCE, 1, HEAD_SIZE).to(dtype)
    yield (
        "rotary positions",
        both_ways(lambda x: rotate_reference(x, angles, angles), heads),
        both_ways(lambda x: rotate(x, angles, angles), heads),
    )
    logits, labels = made(SEQUENCE * ROWS, VOCABULARY), torch.randint(0, VOCABULARY, (SEQUENCE * ROWS,))
    yield (
        "cross-entropy",
        both_ways(lambda x: F.cross_entropy(x.float(), labels, reduction="none"), logits),
        both_ways(lambda x: cross_entropy(x * 1, labels, 0, VOCABULARY), logits),
    )
    yield decoding(dtype)


def one_by_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each document's attention by itself, [S, B, N × D]."""
    parts = [x.split(PACKED, dim=2) for x in (query, key, value)]
    attended = [F.scaled_dot_product_attention(*one, is_causal=True) for one in zip(*parts)]
    return torch.cat(attended, dim=2).permute(2, 0, 1, 3).flatten(2)


def both_ways(operation: Callable[..., Tensor], *inputs: Tensor) -> Work:
    """Forward and backward."""
    weights = torch.randn_like(operation(*inputs))

    def work() -> Tensor:
        return torch.autograd.grad(operation(*inputs), inputs, weights)[0]

    return work


def decoding(dtype: torch.dtype) -> tuple[str, Work, Work]:
    rows, behind = 64, 256
    keys, values = (torch.randn(rows, HEADS, behind, HEAD_SIZE).to(dtype) for _ in range(2))
    query, key, value = (torch.randn(rows, HEADS, HEAD_SIZE).to(dtype) for _ in range(3))
    places = torch.full((rows,), behind - 1)
    mask = torch.zeros(rows, 1, 1, behind, dtype=dtype)
    return (
        "decoding",
        lambda: F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=mask),
        lambda: decode(query, key, value, keys, values, places),
    )


if __name__ == "__main__":
    main()
