"""Operations computed by Triton's kernels, at sizes that fill no block: forward and every gradient beside the
formula and torch's autograd.

`test_triton.py` runs this file in a process of its own: by Triton's interpreter, or on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.dispatch import is_interpreted, takes_triton
from llmscale_kernels.gpu import cross_entropy as softmax
from llmscale_kernels.gpu import norm as norm_kernels
from llmscale_kernels.norm import (
    add_and_layer_norm,
    add_and_rms_norm,
    layer_norm,
    rms_norm,
    rms_norm_reference,
)
from llmscale_kernels.rotary import rotate, rotate_reference, split_and_rotate
from llmscale_kernels.swiglu import swiglu, swiglu_reference
from torch import Tensor

from llmscale.model.entropy import cross_entropy_and_entropy

DEVICE = "cpu" if is_interpreted() else "cuda"
EPSILON = 1e-5
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def test_this_process_takes_the_kernels() -> None:
    assert takes_triton(torch.zeros(1, device=DEVICE))
    assert not takes_triton(torch.zeros(1, device="meta"))


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def both(
    operation: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """What the operation gives and what the reference gives of the same numbers in float64: the result, then
    the gradient of each input. Inputs keep their strides."""
    ours = [one.detach().requires_grad_() for one in inputs]
    wide = [one.detach().double().requires_grad_() for one in inputs]
    outputs = operation(*ours), reference(*wide)
    weights = random(*outputs[1].shape, seed=1)
    gradients = [
        torch.autograd.grad((output * weights.to(output.dtype)).sum(), leaves)
        for output, leaves in zip(outputs, (ours, wide), strict=True)
    ]
    return [(outputs[0].detach(), outputs[1].detach()), *zip(*gradients, strict=True)]


def assert_close(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype, scale: float = 1.0) -> None:
    for own, wanted in pairs:
        close = scale * TOLERANCES[dtype]
        torch.testing.assert_close(own.double(), wanted, rtol=close, atol=close)


@DTYPES
@pytest.mark.parametrize(("rows", "features"), [(7, 1), (300, 24), (11, 96), (5, 257), (3, 2100)])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(
    kind: str, rows: int, features: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a program goes through several tiles.
    monkeypatch.setattr(norm_kernels, "MOST_PARTS", 2)
    hidden, weight, bias = random(rows, features), random(features, seed=2), random(features, seed=3)
    inputs = [one.to(dtype) for one in (hidden + 1, weight, bias)]
    if kind == "rms":
        pairs = both(
            lambda x, w: rms_norm(x, w, EPSILON), lambda x, w: rms_norm_reference(x, w, EPSILON), inputs[:2]
        )
    else:
        pairs = both(
            lambda x, w, b: layer_norm(x, w, b, EPSILON),
            lambda x, w, b: F.layer_norm(x, (features,), w, b, EPSILON),
            inputs,
        )
    assert all(own.dtype == dtype for own, _ in pairs)
    # The gradient of a single feature's norm is the difference of large numbers; sums over rows are large.
    assert_close(pairs, dtype, scale=10)


@DTYPES
@pytest.mark.parametrize(("rows", "features"), [(11, 96), (5, 257)])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_of_a_sum(kind: str, rows: int, features: int, dtype: torch.dtype) -> None:
    shapes = [(rows, features), (rows, features), (features,), (features,)][: 3 if kind == "rms" else 4]
    inputs = [random(*shape, seed=number).to(dtype) for number, shape in enumerate(shapes)]
    operation = add_and_rms_norm if kind == "rms" else add_and_layer_norm

    def reference(hidden: Tensor, residual: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        total = hidden + residual
        if kind == "rms":
            return torch.stack((rms_norm_reference(total, weight, EPSILON), total))
        return torch.stack((F.layer_norm(total, (features,), weight, *bias, EPSILON), total))

    pairs = both(lambda *given: torch.stack(operation(*given, EPSILON)), reference, inputs)
    assert_close(pairs, dtype, scale=4)
    normalised, total = operation(*inputs, EPSILON)
    norm = rms_norm if kind == "rms" else layer_norm
    assert torch.equal(normalised, norm(total, *inputs[2:], EPSILON))
    if dtype != torch.bfloat16 or not is_interpreted():  # The interpreter rounds to bfloat16 by cutting off.
        assert torch.equal(total, inputs[0] + inputs[1])
    hidden = inputs[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(operation(hidden, *inputs[1:], EPSILON)[1].sum(), hidden)
    assert (gradient == 1).all()


def test_norm_of_heads_that_lie_apart() -> None:
    """As queries do in what one matrix product made of them, keys and values; the gradient is expanded."""
    mixed = random(3, 2, 8, 12)
    query, weight = mixed[:, :, :4].requires_grad_(), random(12, seed=2).requires_grad_()
    own = torch.autograd.grad(rms_norm(query, weight, EPSILON).sum(), (query, weight))
    wanted = torch.autograd.grad(rms_norm_reference(query, weight, EPSILON).sum(), (query, weight))
    assert_close(list(zip(own, wanted, strict=True)), torch.float64)


def test_norm_keeps_the_dtype_of_what_it_is_given() -> None:
    hidden, weight = random(5, 96).bfloat16().requires_grad_(), random(96, seed=2).float().requires_grad_()
    output = rms_norm(hidden, weight, EPSILON)
    gradients = torch.autograd.grad(output.sum(), (hidden, weight))
    assert output.dtype == torch.bfloat16
    assert [one.dtype for one in gradients] == [torch.bfloat16, torch.float32]


@DTYPES
@pytest.mark.parametrize("features", [1, 96, 257, 1100])
def test_swiglu(features: int, dtype: torch.dtype) -> None:
    assert_close(both(swiglu, swiglu_reference, [random(2, 3, 2 * features).to(dtype)]), dtype)


def test_swiglu_of_what_is_not_contiguous() -> None:
    assert_close(both(swiglu, swiglu_reference, [random(6, 5).t()]), torch.float64)


def angles(rows: int, size: int) -> tuple[Tensor, Tensor]:
    angle = random(5, rows, size // 2, seed=4).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


@DTYPES
@pytest.mark.parametrize("angle_rows", [1, 2])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(5, 1, 8), (20, 4, 96), (3, 3, 2)])
def test_split_and_rotate(heads: int, kv_heads: int, size: int, angle_rows: int, dtype: torch.dtype) -> None:
    cosine, sine = angles(angle_rows, size)

    def ours(mixed: Tensor) -> Tensor:
        parts = split_and_rotate(mixed, heads, kv_heads, cosine.to(mixed.dtype), sine.to(mixed.dtype))
        return torch.cat(parts, dim=2)

    def reference(mixed: Tensor) -> Tensor:
        query, key, value = mixed.split([heads, kv_heads, kv_heads], dim=2)
        return torch.cat([*(rotate_reference(x, cosine, sine) for x in (query, key)), value], dim=2)

    assert_close(both(ours, reference, [random(5, 2, heads + 2 * kv_heads, size).to(dtype)]), dtype)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 1, 3), (0, 2, 3, 1)])
def test_rotate_takes_any_strides(order: tuple[int, ...]) -> None:
    cosine, sine = angles(2, 8)
    shape = [0] * 4
    for place, dimension in enumerate(order):
        shape[dimension] = (5, 2, 3, 8)[place]
    heads = random(*shape).permute(order)
    pairs = both(lambda x: rotate(x, cosine, sine), lambda x: rotate_reference(x, cosine, sine), [heads])
    assert_close(pairs, torch.float64)


TOKENS, TRUE, PADDED = 6, 5000, 5003
"""More columns than a program takes at a time."""


def labels() -> Tensor:
    return torch.tensor([0, 4095, 4096, 4999, 17, 2500], device=DEVICE)


@DTYPES
def test_cross_entropy(dtype: torch.dtype) -> None:
    pairs = both(
        lambda x: cross_entropy(x.clone(), labels(), 0, TRUE),
        lambda x: F.cross_entropy(x[:, :TRUE], labels(), reduction="none"),
        [4 * random(TOKENS, PADDED).to(dtype)],
    )
    assert not pairs[1][0][:, TRUE:].any()
    assert_close(pairs[:1], torch.float32 if dtype == torch.bfloat16 else dtype)
    assert_close(pairs[1:], dtype)


def losses_and_entropies(logits_TV: Tensor, temperature: float) -> Tensor:
    z_TV = logits_TV[:, :TRUE] / temperature
    logarithms_TV = z_TV.log_softmax(-1)
    entropy_T = -(logarithms_TV.exp() * logarithms_TV).sum(-1)
    return torch.stack((F.cross_entropy(z_TV, labels(), reduction="none"), entropy_T))


@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_cross_entropy_and_entropy(temperature: float, dtype: torch.dtype) -> None:
    pairs = both(
        lambda x: torch.stack(cross_entropy_and_entropy(x.clone(), labels(), temperature, 0, TRUE)),
        lambda x: losses_and_entropies(x, temperature),
        [4 * random(TOKENS, PADDED).to(dtype)],
    )
    assert not pairs[1][0][:, TRUE:].any()
    assert_close(pairs[:1], torch.float32 if dtype == torch.bfloat16 else dtype)
    assert_close(pairs[1:], dtype)


def test_logits_of_minus_infinity_take_no_part() -> None:
    logits = random(TOKENS, 40).requires_grad_()
    masked = logits.masked_fill(torch.arange(40, device=DEVICE) % 3 == 1, -torch.inf)
    few = torch.tensor([0, 2, 3, 5, 6, 38], device=DEVICE)
    losses, entropies = cross_entropy_and_entropy(masked, few, 1.0, 0, 40)
    kept = logits[:, torch.arange(40, device=DEVICE) % 3 != 1]
    logarithms = kept.log_softmax(-1)
    wanted = (
        -logarithms.gather(1, (few - (few + 1) // 3)[:, None])[:, 0],
        -(logarithms.exp() * logarithms).sum(-1),
    )
    assert_close([(losses, wanted[0]), (entropies, wanted[1])], torch.float64)
    (own,) = torch.autograd.grad((losses - 2 * entropies).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((wanted[0] - 2 * wanted[1]).sum(), logits)
    assert_close([(own, expected)], torch.float64)


@pytest.mark.parametrize("cut", [0, 1, 17, 30, 40])
@pytest.mark.parametrize("transposed", [False, True])
def test_parts_of_the_vocabulary_combined(cut: int, transposed: bool) -> None:
    """Two ranks' parts, one of them with padding, and in some cases without any column of its own."""
    whole = random(TOKENS, 40)
    label = torch.tensor([0, 16, 17, 29, 30, 39], device=DEVICE)
    firsts, counts = (0, cut), (cut, 40 - cut)
    parts = [F.pad(whole[:, first : first + count], (0, 2)) for first, count in zip(firsts, counts)]
    if transposed:
        parts = [part.t().contiguous().t() for part in parts]
    found = [
        softmax.statistics(part, label, first, count, 0.7, with_entropy=True)
        for part, first, count in zip(parts, firsts, counts)
    ]
    log_sum_PT, label_logit_PT, entropy_PT = (torch.stack(one) for one in zip(*found))
    log_sum_T = log_sum_PT.logsumexp(0)
    shares_PT = log_sum_PT - log_sum_T
    entropy_T = (shares_PT.exp() * (entropy_PT - shares_PT.clamp(min=-1e4))).sum(0)
    leaf = whole.clone().requires_grad_()
    logarithms = (leaf / 0.7).log_softmax(-1)
    losses = -logarithms.gather(1, label[:, None])[:, 0]
    entropies = -(logarithms.exp() * logarithms).sum(-1)
    pairs = [(log_sum_T - label_logit_PT.sum(0), losses), (entropy_T, entropies)]
    assert_close([(own, wanted.detach()) for own, wanted in pairs], torch.float64)
    weights = random(2, TOKENS, seed=1)
    (wanted,) = torch.autograd.grad((weights[0] * losses + weights[1] * entropies).sum(), leaf)
    for part, first, count in zip(parts, firsts, counts):
        places: Any = (label, first, count)
        softmax.gradient_in_place(part, *places, log_sum_T, weights[0], entropy_T, weights[1], 0.7)
        assert_close([(part[:, :count], wanted[:, first : first + count])], torch.float64)
        assert not part[:, count:].any()


def test_a_second_backward_pass_is_refused() -> None:
    """The gradient has taken the place of the logits."""
    logits = random(TOKENS, 40).requires_grad_()
    losses = cross_entropy(logits * 1, labels().clamp(max=39), 0, 40)
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_nothing_in_nothing_out() -> None:
    """As of a rank whose tokens are all elsewhere."""
    hidden, weight = random(0, 96).requires_grad_(), random(96).requires_grad_()
    for output in (rms_norm(hidden, weight, EPSILON), swiglu(hidden)):
        assert len(output) == 0
        assert not any(one.any() for one in torch.autograd.grad(output.sum(), (hidden,), retain_graph=True))
    (gradient,) = torch.autograd.grad(rms_norm(hidden, weight, EPSILON).sum(), weight)
    assert gradient.shape == (96,) and not gradient.any()
    assert cross_entropy(hidden * 1, torch.zeros(0, dtype=torch.int64, device=DEVICE), 0, 90).shape == (0,)
