"""LoRA's update against the same one written out, in float64, and where it must not reach."""

import torch
from llmscale_kernels.low_rank import add_low_rank, add_low_rank_reference

FIRSTS, RANKS, SIZES, OUTPUTS = (2, 9), (3, 2), (4, 5), 17
"""Outputs 2 to 5 and 9 to 13 of 17."""


def made(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = [(6, 2, OUTPUTS), (6, 2, sum(RANKS)), *zip(SIZES, RANKS)]
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def test_equals_the_formula_and_its_gradients() -> None:
    inputs = made(torch.float64)
    output, inner, *ups = inputs
    found = add_low_rank(output, inner, ups, FIRSTS, 0.7)
    expected = add_low_rank_reference(output, inner, ups, FIRSTS, 0.7)
    weights = torch.randn_like(expected)
    theirs = (expected, *torch.autograd.grad(expected, inputs, weights))
    for a, b in zip((found, *torch.autograd.grad(found, inputs, weights)), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *x: add_low_rank(*x[:2], x[2:], FIRSTS, 0.7), inputs)


def test_outputs_of_no_b_stay_as_they_were_to_the_bit() -> None:
    output, inner, *ups = made(torch.bfloat16)
    before = output.detach().clone()
    found = add_low_rank(output, inner, ups, FIRSTS, 0.7)
    for kept in (slice(0, 2), slice(6, 9), slice(14, OUTPUTS)):
        assert torch.equal(found[..., kept], output[..., kept])
    assert torch.equal(output, before), "the layer's own output is another tensor"
    assert not torch.equal(found[..., 2:6], output[..., 2:6])


def test_a_gradient_that_is_no_whole_tensor() -> None:
    """As the gradient of a sum is, one number laid out by strides."""
    inputs = made(torch.float64)
    output, inner, *ups = inputs
    found = torch.autograd.grad(add_low_rank(output, inner, ups, FIRSTS, 0.7).sum(), inputs)
    expected = torch.autograd.grad(add_low_rank_reference(output, inner, ups, FIRSTS, 0.7).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
