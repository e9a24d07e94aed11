"""Rotary position embedding (arXiv:2104.09864) in the layout of Hugging Face's Llama, in one pass.

With a the first half of a head's dimensions and b the second, a position's angle θ for each pair:

    a′ = a · cos θ − b · sin θ,   b′ = b · cos θ + a · sin θ

Backward is the same with −θ. A program has some heads of one token, which share the angles.
"""

import triton
import triton.language as tl
from torch import Tensor

from llmscale_kernels.gpu.launch import launch, parts_of, power_of_2
from llmscale_kernels.gpu.widened import widened

PAIRS_AT_ONCE = 1024
"""Of a program, over all its heads."""


@triton.jit
def _turn(
    heads,
    cosine,
    sine,
    out,
    batch,
    count,
    half,
    heads_sequence_stride,
    heads_batch_stride,
    heads_stride,
    heads_size_stride,
    out_sequence_stride,
    out_batch_stride,
    out_stride,
    out_size_stride,
    angle_sequence_stride,
    angle_batch_stride,
    SIGN: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    position = (tl.program_id(0) // batch).to(tl.int64)
    row = (tl.program_id(0) % batch).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.arange(0, HALF)[None, :]
    inside = (head < count) & (pair < half)
    angle = position * angle_sequence_stride + row * angle_batch_stride + pair
    cosine_of_pair = widened(tl.load(cosine + angle, mask=pair < half, other=0.0))
    sine_of_pair = SIGN * widened(tl.load(sine + angle, mask=pair < half, other=0.0))
    source = heads + position * heads_sequence_stride + row * heads_batch_stride
    source += head.to(tl.int64) * heads_stride + pair * heads_size_stride
    first = widened(tl.load(source, mask=inside, other=0.0))
    second = widened(tl.load(source + half * heads_size_stride, mask=inside, other=0.0))
    target = out + position * out_sequence_stride + row * out_batch_stride
    target += head.to(tl.int64) * out_stride + pair * out_size_stride
    tl.store(target, first * cosine_of_pair - second * sine_of_pair, mask=inside)
    tl.store(target + half * out_size_stride, second * cosine_of_pair + first * sine_of_pair, mask=inside)


def turn(heads_SBND: Tensor, cosine_SBD: Tensor, sine_SBD: Tensor, out_SBND: Tensor, sign: int) -> Tensor:
    """Turn by the angles (`sign` 1) or back (-1), into `out`, which is returned.

    Args:
        heads_SBND: of any strides.
        cosine_SBD: [S, B or 1, D]; its two halves are equal.
        sine_SBD: likewise.
        out_SBND: of any strides.
    """
    sequence, batch, count, size = heads_SBND.shape
    # Both have the same strides then: 0 where all rows of the batch share the angles.
    cosine_SBD, sine_SBD = (x.contiguous().expand(-1, batch, -1) for x in (cosine_SBD, sine_SBD))
    pairs = power_of_2(size // 2)
    heads_at_once = min(max(1, PAIRS_AT_ONCE // pairs), power_of_2(count))
    launch(
        *(_turn, (sequence * batch, parts_of(count, heads_at_once))),
        *(heads_SBND, cosine_SBD, sine_SBD, out_SBND, batch, count, size // 2),
        *heads_SBND.stride(),
        *out_SBND.stride(),
        *cosine_SBD.stride()[:2],
        SIGN=sign,
        HEADS=heads_at_once,
        HALF=pairs,
    )
    return out_SBND
