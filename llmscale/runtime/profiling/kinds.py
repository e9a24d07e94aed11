"""What an operation is for, told by the name that torch's profiler gives it. No torch."""

import re
from typing import Literal, get_args

Kind = Literal[
    "matrix products",
    "attention",
    "norms",
    "activation",
    "rotary positions",
    "embedding",
    "loss",
    "element-wise and sums",
    "copies and casts",
    "communication",
    "optimizer",
    "other operations",
    "outside operations",
]
"""The last one is no operation: Python, autograd's engine, and waiting that torch does not know of."""

KINDS: tuple[Kind, ...] = get_args(Kind)
OUTSIDE: Kind = "outside operations"

FUNCTIONS: dict[str, Kind] = {
    "_CompiledAttention": "attention",
    "_RMSNorm": "norms",
    "_CompiledRMSNorm": "norms",
    "_Norm": "norms",
    "_SwiGLU": "activation",
    "_CompiledSwiGLU": "activation",
    "_Rotate": "rotary positions",
    "_SplitAndRotate": "rotary positions",
    "_CrossEntropy": "loss",
    "_LinearCrossEntropy": "loss",
    "_CrossEntropyAndEntropy": "loss",
    "_VocabParallelCrossEntropy": "loss",
}
"""Autograd functions of ours and of Megatron that are made of small operations of torch."""

OPERATIONS: dict[Kind, str] = {
    "matrix products": (
        "mm addmm bmm baddbmm mv addmv matmul linear linear_pointwise mkl_linear mkldnn_linear scaled_mm"
        " product"
    ),
    "attention": "attention decode",
    "norms": "layer_norm native_layer_norm rms_norm fused_rms_norm",
    "activation": "silu gelu relu swiglu",
    "rotary positions": "rotary",
    "embedding": "embedding embedding_dense",
    "loss": "cross_entropy cross_entropy_loss log_softmax nll_loss nll_loss_nd nll_loss_forward",
    "element-wise and sums": (
        "abs add addcdiv addcmul all amax amin any bernoulli bitwise_and bitwise_not bitwise_or clamp"
        " clamp_min cos cumsum div dropout eq exp ge gt isfinite isnan le lerp linalg_vecdot"
        " linalg_vector_norm log logical_and logical_not logical_or logsumexp lt masked_fill max maximum mean"
        " min minimum mul native_dropout ne neg norm pow reciprocal rsqrt rsub sigmoid sin softmax sqrt"
        " square sub sum tanh tril triu var where"
    ),
    "copies and casts": (
        "cat clone contiguous copy expand_copy fill full full_like ones ones_like new_full new_ones new_zeros"
        " repeat repeat_interleave stack to to_copy zero zeros zeros_like"
    ),
    "optimizer": "fused_adam fused_adamw",
}
"""Names without namespace, underscores around them and `_backward`."""

WHOLE: frozenset[Kind] = frozenset(
    ("attention", "norms", "activation", "rotary positions", "embedding", "loss", "optimizer")
)
"""Kinds whose operations are made of others, which count as theirs."""

COMMUNICATION = re.compile(r"(?:c10d|_c10d_functional|gloo|nccl|mpi|ucc)::?")
COLLECTIVE = re.compile(r"(?:gloo|nccl|mpi|ucc):")
"""From the moment that it is sent to its end, beside what the thread does that waits for it or does not."""
ATTENTION = re.compile(r"scaled_dot_product|flash_attention|efficient_attention")
ALLOCATORS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize")
"""They get memory for the operation that calls them."""

_KIND_OF_OPERATION: dict[str, Kind] = {
    name: kind for kind, names in OPERATIONS.items() for name in names.split()
}


def kind_of(name: str, around: Kind | None = None) -> Kind:
    """The kind of an operation.

    Args:
        around: the kind of WHOLE that it is a part of. Communication stays what it is in all of them, and
            a product in the loss is the output layer's.
    """
    own = _own_kind(name)
    stays = own == "communication" or (own == "matrix products" and around == "loss")
    return own if around is None or stays else around


def is_operation(name: str) -> bool:
    """One of torch's, and no mark, no function in Python and no part of autograd's engine, which may wait."""
    return "::" in name and not name.startswith(("autograd::", "torch::"))


def is_allocator(name: str) -> bool:
    return _bare(name) in ALLOCATORS


def _own_kind(name: str) -> Kind:
    if COMMUNICATION.match(name):
        return "communication"
    if name.startswith("Optimizer.step#"):
        return "optimizer"
    function = name.removesuffix("Backward")
    if function in FUNCTIONS:
        return FUNCTIONS[function]
    if not is_operation(name):
        return OUTSIDE
    if ATTENTION.search(name):
        return "attention"
    return _KIND_OF_OPERATION.get(_bare(name), "other operations")


def _bare(name: str) -> str:
    """`silu` of `aten::silu_backward`, `add` of `aten::_foreach_add_`."""
    bare = name.rpartition("::")[2].strip("_")
    return bare.removeprefix("foreach_").removesuffix("_data").removesuffix("_backward")
