"""Each operation against its plain formula and torch's autograd, in float64, and close to it in bfloat16."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.norm import rms_norm, rms_norm_reference
from llmscale_kernels.rotary import rotate, rotate_reference, split_and_rotate
from llmscale_kernels.swiglu import swiglu, swiglu_reference
from torch import Tensor

EPSILON = 1e-5


def angles() -> tuple[Tensor, Tensor]:
    angle = torch.randn(5, 1, 4, dtype=torch.float64).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


COSINE, SINE = angles()


def split_then_rotate(mixed: Tensor) -> Tensor:
    query, key, value = mixed.split([4, 2, 2], dim=2)
    turned = (rotate_reference(x, COSINE.to(mixed), SINE.to(mixed)) for x in (query, key))
    return torch.cat([*turned, value], dim=2)


OPERATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "rms_norm": (
        lambda x, w: rms_norm(x, w, EPSILON),
        lambda x, w: rms_norm_reference(x, w, EPSILON),
        [(3, 2, 16), (16,)],
    ),
    "swiglu": (swiglu, swiglu_reference, [(3, 2, 24)]),
    "rotate": (
        lambda x: rotate(x, COSINE.to(x), SINE.to(x)),
        lambda x: rotate_reference(x, COSINE.to(x), SINE.to(x)),
        [(5, 2, 3, 8)],
    ),
    "split_and_rotate": (
        lambda x: torch.cat(split_and_rotate(x, 4, 2, COSINE.to(x), SINE.to(x)), dim=2),
        split_then_rotate,
        [(5, 2, 8, 8)],
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_the_formula_and_its_gradient(name: str) -> None:
    operation, reference, shapes = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    output, expected = operation(*inputs), reference(*inputs)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(output)
    ours = torch.autograd.grad((output * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_bfloat16_stays_close(name: str) -> None:
    operation, reference, shapes = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    output, expected = operation(*inputs), reference(*wide)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)
    ours = torch.autograd.grad(output.sum(), inputs)
    theirs = torch.autograd.grad(expected.sum(), wide)
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=3e-2, atol=6e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_ignores_padding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(600, 128).to(dtype).requires_grad_()
    labels = torch.randint(0, 100, (600,))
    wide = logits.detach().double()[:, :100].clone().requires_grad_()
    losses = cross_entropy(logits, labels, first_column=0, columns=100)
    expected = F.cross_entropy(wide, labels, reduction="none")
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.rand(600, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((losses * weights.to(losses.dtype)).sum(), logits)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), wide)
    assert gradient[:, 100:].abs().max() == 0
    rounding = 4e-3 if dtype == torch.bfloat16 else tolerance
    torch.testing.assert_close(gradient[:, :100].double(), wanted, rtol=rounding, atol=rounding)
