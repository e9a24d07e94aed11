"""The operations between matrix products, both ways, by torch, torch.compile, Liger-Kernel and llmscale.

All get the same bf16 numbers, each a copy of its own: some put gradients in the place of what they are
given. `torch` is torch's own operation where there is one, else the formula; torch.compile is given the
formula as papers have it, with sums in float32. Losses are means, as in training.

Shapes: see `bench.gpu.floors`; X = N + 2 K heads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from llmscale_kernels import attention
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.linear_cross_entropy import Vocabulary, linear_cross_entropy
from llmscale_kernels.norm import add_and_rms_norm, layer_norm, rms_norm, rms_norm_reference
from llmscale_kernels.rotary import rotate_reference, split_and_rotate
from llmscale_kernels.swiglu import swiglu, swiglu_reference
from torch import Tensor

from bench.gpu import floors
from bench.gpu.floors import Floor
from llmscale.config.schema import ModelSection

try:
    from liger_kernel.transformers import functional as liger  # pyright: ignore[reportMissingImports]
except ImportError:
    liger: Any = None

HAS_LIGER = liger is not None
TORCH, COMPILED, LIGER, LLMSCALE = WAYS = ("torch", "torch.compile", "Liger-Kernel", "llmscale")
EPSILON = 1e-5
DOCUMENTS = 8
"""Of a packed row."""

Function = Callable[..., Any]
"""Of tensors; gives one or several."""


@dataclass(frozen=True)
class Sizes:
    rows: int
    sequence: int
    scored: int
    """Tokens that have logits: all of them would fill a small device."""
    hidden: int
    features: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int

    @classmethod
    def of(cls, model: ModelSection, rows: int, sequence: int, scored: int) -> "Sizes":
        assert model.vocabulary_size is not None, "the model names no vocabulary size"
        return cls(
            *(rows, sequence, scored, model.hidden_size, model.ffn_size_or_default),
            *(model.heads, model.kv_heads_or_default, model.head_size_or_default, model.vocabulary_size),
        )

    @property
    def tokens(self) -> int:
        return self.rows * self.sequence


@dataclass
class BothWays:
    """Forward and backward of a function of these inputs, each call anew."""

    function: Function
    inputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...] = field(default=(), init=False)
    """Of the outputs."""

    def __call__(self) -> tuple[Tensor, ...]:
        """The gradients of the inputs."""
        outputs = self.outputs()
        if not self.gradients:
            self.gradients = tuple(
                torch.randn_like(one) if one.ndim else torch.ones_like(one) for one in outputs
            )
        return torch.autograd.grad(outputs, self.inputs, self.gradients)

    def outputs(self) -> tuple[Tensor, ...]:
        found = self.function(*self.inputs)
        return found if isinstance(found, tuple) else (found,)


@dataclass(frozen=True)
class Operation:
    name: str
    floor: Floor
    ways: dict[str, BothWays]
    """By who computes."""


def operations(sizes: Sizes, device: torch.device) -> Iterator[Operation]:
    """One after the other, so that the tensors of one operation are gone before those of the next but one."""
    for make in (
        *(root_mean_square_norm, norm_of_a_sum, centered_norm, gated_feed_forward, rotary_positions),
        *(causal_attention, packed_attention, loss_of_logits, loss_of_hidden_states),
    ):
        yield make(sizes, device)


def root_mean_square_norm(sizes: Sizes, device: torch.device) -> Operation:
    def formula(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm_reference(x.float(), weight.float(), EPSILON).to(x.dtype)

    return _operation(
        "RMSNorm",
        floors.norm(sizes.tokens, sizes.hidden),
        (_random(device, sizes.sequence, sizes.rows, sizes.hidden), _random(device, sizes.hidden)),
        by_torch=lambda x, weight: F.rms_norm(x, (sizes.hidden,), weight, EPSILON),
        formula=formula,
        by_liger=lambda x, weight: liger.liger_rms_norm(x, weight, EPSILON, in_place=False),
        by_llmscale=lambda x, weight: rms_norm(x, weight, EPSILON),
    )


def norm_of_a_sum(sizes: Sizes, device: torch.device) -> Operation:
    def formula(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return rms_norm_reference(total.float(), weight.float(), EPSILON).to(x.dtype), total

    def by_torch(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (sizes.hidden,), weight, EPSILON), total

    shape = (sizes.sequence, sizes.rows, sizes.hidden)
    return _operation(
        "residual and RMSNorm",
        floors.norm_of_sum(sizes.tokens, sizes.hidden),
        (_random(device, *shape), _random(device, *shape), _random(device, sizes.hidden)),
        by_torch=by_torch,
        formula=formula,
        by_llmscale=lambda x, residual, weight: add_and_rms_norm(x, residual, weight, EPSILON),
    )


def centered_norm(sizes: Sizes, device: torch.device) -> Operation:
    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.float()
        centered = wide - wide.mean(-1, keepdim=True)
        return (rms_norm_reference(centered, weight.float(), EPSILON) + bias.float()).to(x.dtype)

    vectors = (_random(device, sizes.hidden) for _ in range(2))
    return _operation(
        "LayerNorm",
        floors.norm(sizes.tokens, sizes.hidden),
        (_random(device, sizes.sequence, sizes.rows, sizes.hidden), *vectors),
        by_torch=lambda x, weight, bias: F.layer_norm(x, (sizes.hidden,), weight, bias, EPSILON),
        formula=formula,
        by_liger=lambda x, weight, bias: liger.liger_layer_norm(x, weight, bias, EPSILON),
        by_llmscale=lambda x, weight, bias: layer_norm(x, weight, bias, EPSILON),
    )


def gated_feed_forward(sizes: Sizes, device: torch.device) -> Operation:
    gate_and_up = (_random(device, sizes.sequence, sizes.rows, sizes.features) for _ in range(2))
    return _operation(
        "SwiGLU",
        floors.swiglu(sizes.tokens, sizes.features),
        (_random(device, sizes.sequence, sizes.rows, 2 * sizes.features),),
        by_torch=swiglu_reference,
        formula=lambda mixed: swiglu_reference(mixed.float()).to(mixed.dtype),
        by_liger=lambda gate, up: liger.liger_swiglu(gate, up),
        liger_inputs=tuple(gate_and_up),
        by_llmscale=swiglu,
    )


def rotary_positions(sizes: Sizes, device: torch.device) -> Operation:
    heads, kv_heads = sizes.heads, sizes.kv_heads
    frequencies = 10_000 ** -torch.linspace(0, 1, sizes.head_size // 2, device=device)
    angles = torch.arange(sizes.sequence, device=device)[:, None, None] * frequencies.repeat(2)
    cosine_S1D, sine_S1D = angles.cos().bfloat16(), angles.sin().bfloat16()

    def formula(mixed_SBXD: Tensor) -> tuple[Tensor, ...]:
        query, key, value = mixed_SBXD.split([heads, kv_heads, kv_heads], dim=2)
        turned_query = rotate_reference(query, cosine_S1D, sine_S1D)
        return turned_query, rotate_reference(key, cosine_S1D, sine_S1D), value

    def by_liger(query_BNSD: Tensor, key_BKSD: Tensor) -> tuple[Tensor, ...]:
        angles_1SD = (cosine_S1D.transpose(0, 1), sine_S1D.transpose(0, 1))
        return liger.liger_rope(query_BNSD, key_BKSD, *angles_1SD)[:2]

    of_query_and_key = (
        _random(device, sizes.rows, sizes.sequence, count, sizes.head_size).transpose(1, 2)
        for count in (heads, kv_heads)
    )
    return _operation(
        "rotary positions",
        floors.rotary(sizes.tokens, heads, kv_heads, sizes.head_size),
        (_random(device, sizes.sequence, sizes.rows, heads + 2 * kv_heads, sizes.head_size),),
        by_torch=formula,
        formula=formula,
        by_liger=by_liger,
        liger_inputs=tuple(of_query_and_key),
        by_llmscale=lambda mixed: split_and_rotate(mixed, heads, kv_heads, cosine_S1D, sine_S1D),
    )


def causal_attention(sizes: Sizes, device: torch.device) -> Operation:
    return _attention("attention", sizes, device, documents=1)


def packed_attention(sizes: Sizes, device: torch.device) -> Operation:
    return _attention(f"attention, {DOCUMENTS} documents a row", sizes, device, DOCUMENTS)


def _attention(name: str, sizes: Sizes, device: torch.device, documents: int) -> Operation:
    """Of tensors that lie as `split_and_rotate` leaves them. torch is given documents as rows of a batch, as
    only those of one length can be."""
    length = sizes.sequence // documents
    lengths = ((length,) * documents,) * sizes.rows

    def by_torch(query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor) -> Tensor:
        query, key, value = (
            tensor.unflatten(0, (documents, length)).permute(2, 0, 3, 1, 4).flatten(0, 1)
            for tensor in (query_SBND, key_SBKD, value_SBKD)
        )
        shared = sizes.heads != sizes.kv_heads
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=shared)
        return attended.unflatten(0, (sizes.rows, documents)).permute(1, 3, 0, 2, 4).flatten(0, 1)

    def by_llmscale(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if attention.fits(query):
            return attention.attention(query, key, value, lengths)
        return by_torch(query, key, value)

    inputs = (
        _random(device, sizes.rows, heads, sizes.sequence, sizes.head_size).permute(2, 0, 1, 3)
        for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    )
    sizes_of_heads = (sizes.heads, sizes.kv_heads, sizes.head_size)
    return _operation(
        name,
        floors.attention(sizes.rows, sizes.sequence, *sizes_of_heads, documents),
        tuple(inputs),
        by_torch=by_torch,
        by_llmscale=by_llmscale,
    )


def loss_of_logits(sizes: Sizes, device: torch.device) -> Operation:
    labels = _labels(sizes, device)

    def formula(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels)

    return _operation(
        "cross-entropy",
        floors.cross_entropy(sizes.scored, sizes.vocabulary),
        (_random(device, sizes.scored, sizes.vocabulary),),
        by_torch=formula,
        formula=formula,
        by_liger=lambda logits: liger.liger_cross_entropy(logits, labels),
        by_llmscale=lambda logits: cross_entropy(logits, labels, 0, sizes.vocabulary).mean(),
    )


def loss_of_hidden_states(sizes: Sizes, device: torch.device) -> Operation:
    labels, vocabulary = _labels(sizes, device), Vocabulary(0, sizes.vocabulary)

    def formula(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), labels)

    return _operation(
        "output layer and cross-entropy",
        floors.linear_cross_entropy(sizes.scored, sizes.hidden, sizes.vocabulary),
        (_random(device, sizes.scored, sizes.hidden), _random(device, sizes.vocabulary, sizes.hidden) * 0.02),
        by_torch=formula,
        formula=formula,
        by_liger=lambda hidden, weight: liger.liger_fused_linear_cross_entropy(hidden, weight, labels),
        by_llmscale=lambda hidden, weight: linear_cross_entropy(hidden, weight, labels, vocabulary)[0].mean(),
    )


def _operation(
    name: str,
    floor: Floor,
    inputs: tuple[Tensor, ...],
    *,
    by_torch: Function,
    by_llmscale: Function,
    formula: Function | None = None,
    by_liger: Function | None = None,
    liger_inputs: tuple[Tensor, ...] | None = None,
) -> Operation:
    """
    Args:
        formula: for torch.compile; None where it does not compete.
        by_liger: None where Liger-Kernel has no such operation.
        liger_inputs: where a model that uses Liger-Kernel has several products in place of one, what comes
            out of these.
    """
    ways: dict[str, Function] = {TORCH: by_torch}
    if formula is not None:
        ways[COMPILED] = _compiled(formula, inputs[0].device)
    if by_liger is not None and HAS_LIGER:
        ways[LIGER] = by_liger
    ways[LLMSCALE] = by_llmscale
    given = dict.fromkeys(ways, inputs)
    if LIGER in ways and liger_inputs is not None:
        given[LIGER] = liger_inputs
    return Operation(name, floor, {way: BothWays(ways[way], _own(given[way])) for way in ways})


def _own(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.detach().clone().requires_grad_() for one in inputs)


def _compiled(formula: Function, device: torch.device) -> Function:
    """On CPUs, where the program is only tried, traced and taken apart, but not compiled."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    return torch.compile(formula, fullgraph=True, dynamic=False, backend=backend)


def _random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=device)


def _labels(sizes: Sizes, device: torch.device) -> Tensor:
    return torch.randint(sizes.vocabulary, (sizes.scored,), device=device)
