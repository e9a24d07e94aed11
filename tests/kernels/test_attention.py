"""The attention kernel of CPUs against torch's in float64, and what must not change what it computes."""

import pytest
import torch
from llmscale_kernels.attention import Lengths, attention, attention_reference, fits
from llmscale_kernels.cpu import library
from torch import Tensor

SHAPES: dict[str, tuple[tuple[int, int, int, int], Lengths, int | None]] = {
    "one block": ((2, 2, 16, 40), ((40,), (40,)), None),
    "several blocks": ((4, 4, 32, 150), ((150,),), None),
    "a block exactly": ((1, 1, 64, 128), ((128,),), None),
    "shared keys": ((6, 2, 48, 97), ((97,), (97,)), None),
    "documents": ((2, 2, 32, 200), ((1, 70, 129), (200,), (3, 63, 64, 65, 5)), None),
    "window": ((2, 1, 16, 210), ((210,),), 30),
    "window wider than a block": ((2, 2, 16, 300), ((300,), (100, 200)), 130),
    "window of one": ((1, 1, 16, 70), ((70,),), 1),
}
"""(query heads, key-value heads, head size, sequence), documents of each row, window."""


def made(name: str, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Query, key and value with heads first in memory, as the model has them, and the output's gradient."""
    (heads, kv_heads, size, sequence), lengths, _ = SHAPES[name]
    torch.manual_seed(0)
    rows = len(lengths)
    inputs = [
        torch.randn(rows, n, sequence, size).to(dtype).permute(2, 0, 1, 3).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    ]
    return inputs, torch.randn(sequence, rows, heads, size).to(dtype)


def with_gradients(
    inputs: list[Tensor], weights: Tensor, lengths: Lengths, window: int | None = None
) -> list[Tensor]:
    output = attention(*inputs, lengths, window)
    return [output, *torch.autograd.grad(output, inputs, weights)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_torch_in_float64(name: str, dtype: torch.dtype) -> None:
    _, lengths, window = SHAPES[name]
    inputs, weights = made(name, dtype)
    assert fits(inputs[0])
    found = with_gradients(inputs, weights, lengths, window)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = attention_reference(*wide, lengths, window)
    gradients = torch.autograd.grad(expected, wide, weights.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(found, [expected, *gradients], strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["documents", "shared keys", "window"])
def test_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LEAST_OF_THREADS", 0)
    _, lengths, window = SHAPES[name]
    inputs, weights = made(name, torch.float32)
    before = torch.get_num_threads()
    found: list[list[Tensor]] = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(with_gradients(inputs, weights, lengths, window))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


FAMILIES: tuple[Lengths, Lengths] = (
    ((30, 20, 70, 5, 64, 1, 10), (200,), (70, 60, 70)),
    ((0, 30, 30, 30, 0, 64, 64), (0,), (0, 70, 0)),
)
"""Lengths, and how much each document goes on from."""


@pytest.mark.parametrize("window", [None, 25, 90])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 1)])
def test_documents_that_go_on_from_one_see_it(heads: int, kv_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    lengths, before = FAMILIES
    inputs = [torch.randn(200, 3, n, 32).requires_grad_() for n in (heads, kv_heads, kv_heads)]
    weights = torch.randn(200, 3, heads, 32)
    output = attention(*inputs, lengths, window, before)
    found = [output, *torch.autograd.grad(output, inputs, weights)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = attention_reference(*wide, lengths, window, before)
    gradients = torch.autograd.grad(expected, wide, weights.double())
    for ours, theirs in zip(found, [expected, *gradients], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_a_beginning_and_what_goes_on_from_it_are_one_document() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(200, 1, 2, 32).requires_grad_() for _ in range(3)]
    weights = torch.randn(200, 1, 2, 32)
    whole = attention(*inputs, ((200,),))
    parts = attention(*inputs, ((70, 130),), None, ((0, 70),))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(x, inputs, weights) for x in (parts, whole)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_going_on_from_a_part_is_refused() -> None:
    inputs = [torch.randn(40, 1, 2, 32) for _ in range(3)]
    with pytest.raises(ValueError, match="goes on from 10 of 20 tokens"):
        attention(*inputs, ((20, 20),), None, ((0, 10),))


def test_a_document_is_what_it_is_alone() -> None:
    _, lengths, _ = SHAPES["documents"]
    inputs, weights = made("documents", torch.float32)
    packed = with_gradients(inputs, weights, lengths)
    for row, row_lengths in enumerate(lengths):
        start = 0
        for length in row_lengths:
            place = (slice(start, start + length), slice(row, row + 1))
            alone = [x.detach()[place].requires_grad_() for x in inputs]
            found = with_gradients(alone, weights[place], ((length,),))
            assert all(torch.equal(whole[place], part) for whole, part in zip(packed, found, strict=True))
            start += length


def test_layouts_in_memory_change_nothing() -> None:
    _, lengths, _ = SHAPES["shared keys"]
    inputs, weights = made("shared keys", torch.float32)
    plain = [x.detach().contiguous().requires_grad_() for x in inputs]
    everywhere = torch.ones(()).expand(weights.shape)
    for gradient in (weights, everywhere):
        found, expected = (with_gradients(x, gradient, lengths, None) for x in (plain, inputs))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_large_scores_and_what_is_not_a_number() -> None:
    inputs, _ = made("several blocks", torch.float32)
    large = [inputs[0].detach() * 1e3, *(x.detach() for x in inputs[1:])]
    output = attention(*large, ((150,),))
    expected = attention_reference(*(x.double() for x in large), ((150,),))
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)
    large[1][100, 0, 2, 5] = torch.nan
    lost = attention(*large, ((150,),)).isnan()
    assert lost[100:, 0, 2].all()
    assert not lost[:100].any()
    assert not lost[:, 0, [0, 1, 3]].any()


def test_documents_that_do_not_fill_their_row_are_refused() -> None:
    inputs, _ = made("one block", torch.float32)
    with pytest.raises(ValueError, match=r"\(30,\) tokens do not fill a row of 40"):
        attention(*inputs, ((40,), (30,)))


def test_what_the_kernel_does_not_take() -> None:
    assert not fits(torch.zeros(4, 1, 1, 24))
    assert not fits(torch.zeros(4, 1, 1, 32, dtype=torch.float64))
