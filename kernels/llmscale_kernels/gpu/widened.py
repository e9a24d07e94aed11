"""What kernels compute in."""

import triton
import triton.language as tl


@triton.jit
def widened(values):
    """In float32 at least: 16 bits are for memory, not for sums."""
    return values if values.dtype == tl.float64 else values.to(tl.float32)
