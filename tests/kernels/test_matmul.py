"""The products of linear layers, whoever computes them here, against torch in float64."""

from collections.abc import Iterator

import pytest
import torch
from llmscale_kernels import matmul
from torch import Tensor

SHAPES = [
    ((96,), 48, 96),
    ((5, 7), 16, 24),
    ((40, 1), 256, 768),
    ((3,), 8, 8),
    ((129,), 33, 257),
    ((0,), 8, 4),
]
"""Leading sizes, features in, features out."""


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["oneDNN", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(matmul, "onednn_is_quicker", lambda: request.param == "oneDNN")
    return request.param


def tensors(leading: tuple[int, ...], inputs: int, outputs: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = (*leading, inputs), (outputs, inputs), (*leading, outputs)
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("leading", "inputs", "outputs"), SHAPES)
def test_all_three_products(
    leading: tuple[int, ...], inputs: int, outputs: int, threads: int, library: str
) -> None:
    input_XI, weight_OI, gradient_XO = tensors(leading, inputs, outputs, torch.float32)
    sum_OI = weight_OI.clone()
    ours = (
        matmul.product(input_XI, weight_OI),
        matmul.input_gradient(gradient_XO, weight_OI),
        matmul.weight_gradient(gradient_XO, input_XI),
        matmul.weight_gradient(gradient_XO, input_XI, onto_OI=sum_OI),
    )
    assert ours[3].data_ptr() == sum_OI.data_ptr()
    input_XI, weight_OI, gradient_XO = (one.double() for one in (input_XI, weight_OI, gradient_XO))
    expected = (
        input_XI @ weight_OI.T,
        gradient_XO @ weight_OI,
        torch.einsum("...o,...i->oi", gradient_XO, input_XI),
    )
    expected = (*expected, weight_OI + expected[2])
    for found, exact in zip(ours, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * inputs**0.5)


def test_onednn_is_asked_where_it_is_quicker_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    true = matmul._onednn

    def counted(input_XI: Tensor, weight_OI: Tensor) -> Tensor:
        asked.append(tuple(input_XI.shape))
        return true(input_XI, weight_OI)

    monkeypatch.setattr(matmul, "_onednn", counted)
    monkeypatch.setattr(matmul, "onednn_is_quicker", lambda: True)
    for rows, dtype in ((64, torch.float32), (8, torch.float32), (64, torch.float64), (64, torch.bfloat16)):
        input_XI, weight_OI, _ = tensors((rows,), 16, 16, dtype)
        matmul.product(input_XI, weight_OI)
    assert asked == [(64, 16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 13, 64])
def test_packed_weights_give_the_same_product(rows: int, dtype: torch.dtype) -> None:
    """However many rows there are at the end: those that are done leave."""
    input_XI, weight_OI, _ = tensors((1, rows), 256, 384, dtype)
    packed = matmul.pack(weight_OI, 64)
    if packed is None:
        assert not matmul.has_onednn() or dtype == torch.bfloat16
        return
    found = matmul.packed_product(input_XI, packed)
    exact = input_XI.double() @ weight_OI.double().T
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=16 * tolerance)


def test_what_cannot_be_packed_is_not() -> None:
    assert matmul.pack(torch.ones(4, 4, dtype=torch.float64), 8) is None
    assert matmul.pack(torch.ones(4, 4, device="meta"), 8) is None


def test_the_processor_has_a_maker_or_none() -> None:
    assert matmul.processor_vendor() == matmul.processor_vendor().strip()
    if not matmul.processor_vendor():
        assert not matmul.onednn_is_quicker()
