"""The products of linear layers, whoever computes them here, against torch in float64."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from llmscale_kernels import matmul
from llmscale_kernels.cpu import matmul as cpu
from llmscale_kernels.cpu.library import processor_vendor
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


@pytest.fixture(params=["llmscale", "oneDNN", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return choose(request.param, monkeypatch)


@pytest.fixture(
    params=[
        (name, dtype)
        for name in ("llmscale", "oneDNN", "torch")
        for dtype in (torch.float32, torch.bfloat16)
        if (name, dtype) != ("oneDNN", torch.bfloat16)  # which is torch's own choice
    ],
    ids=lambda param: "-".join(map(str, param)),
)
def dtype_of_a_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """A type of which the library computes the products."""
    name, dtype = request.param
    choose(name, monkeypatch)
    return dtype


def choose(library: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(matmul, "library", lambda dtype: library)
    monkeypatch.setattr(matmul, "onednn_is_quicker", lambda: library == "oneDNN")
    for name in ("ROWS_OF_A_THREAD", "OUTPUTS_OF_A_THREAD"):
        monkeypatch.setattr(matmul, name, 1)
    return library


def tensors(leading: tuple[int, ...], inputs: int, outputs: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = (*leading, inputs), (outputs, inputs), (*leading, outputs)
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("leading", "inputs", "outputs"), SHAPES)
def test_all_three_products(
    leading: tuple[int, ...], inputs: int, outputs: int, threads: int, dtype_of_a_library: torch.dtype
) -> None:
    dtype = dtype_of_a_library
    input_XI, weight_OI, gradient_XO = tensors(leading, inputs, outputs, dtype)
    sum_OI, wide_OI = weight_OI.clone(), weight_OI.float() + 0.001
    expected_wide_OI = wide_OI.double()
    ours = (
        matmul.product(input_XI, weight_OI),
        matmul.input_gradient(gradient_XO, weight_OI),
        matmul.weight_gradient(gradient_XO, input_XI),
        matmul.weight_gradient(gradient_XO, input_XI, onto_OI=sum_OI),
        matmul.weight_gradient(gradient_XO, input_XI, onto_OI=wide_OI),
    )
    assert ours[3].data_ptr() == sum_OI.data_ptr() and ours[4].data_ptr() == wide_OI.data_ptr()
    input_XI, weight_OI, gradient_XO = (one.double() for one in (input_XI, weight_OI, gradient_XO))
    of_weight_OI = torch.einsum("...o,...i->oi", gradient_XO, input_XI)
    expected = (input_XI @ weight_OI.T, gradient_XO @ weight_OI, of_weight_OI)
    expected = (*expected, weight_OI + of_weight_OI, expected_wide_OI + of_weight_OI)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for found, exact in zip(ours, expected, strict=True):
        assert found.dtype == (torch.float32 if found is ours[4] else dtype)
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance * inputs**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes", [(32, 16, 16), (37, 18, 49), (300, 130, 100), (65, 96, 95), (64, 200_000, 100)]
)
def test_our_own_depends_on_no_other_row_and_on_no_number_of_threads(
    sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """Rows, inner and columns, in each of the orders in memory, with rows that lie apart; the last one takes
    its right factor in several groups."""
    rows, inner, columns = sizes
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(rows, inner + 6, generator=generator).to(dtype)[:, :inner]
    right = torch.randn(inner, columns + 2, generator=generator).to(dtype)[:, :columns]
    if not cpu.runs(dtype):
        assert not cpu.fits(left, right)  # nothing to compute here: without AVX-512 of that type torch does
        return
    exact = left.double() @ right.double()
    results: list[Tensor] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for left_is_transposed, right_is_transposed in itertools.product((False, True), repeat=2):
                given = left.t().contiguous() if left_is_transposed else left
                other = right.t().contiguous() if right_is_transposed else right
                assert cpu.fits(given, other, left_is_transposed, right_is_transposed)
                result = torch.full((rows, columns + 5), 7.0)[:, :columns]
                results.append(cpu.multiply(given, other, result, left_is_transposed, right_is_transposed))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0].double(), exact, rtol=1e-5, atol=1e-5 + 2e-7 * inner)
    assert all(torch.equal(results[0], other) for other in results)
    few = cpu.multiply(left[8:25], right, torch.zeros(17, columns))
    assert torch.equal(few, results[0][8:25])


class Wrapped(Tensor):
    """Of which nobody knows what its memory holds."""


def test_what_does_not_fit_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.ones(shape, dtype=dtype)

    has_kernel = cpu.runs(torch.bfloat16)
    assert cpu.fits(ones(64, 32), ones(32, 48)) == has_kernel
    assert cpu.fits(ones(64, 32), ones(48, 32), right_is_transposed=True) == has_kernel
    assert cpu.fits(ones(33, 64), ones(33, 48), left_is_transposed=True) == has_kernel
    # Of 33 bfloat16 the last one has no other; a row of 33 begins within a word.
    assert not cpu.fits(ones(64, 33), ones(33, 48))
    assert not cpu.fits(ones(64, 32), ones(48, 33)[:, :32], right_is_transposed=True)
    assert not cpu.fits(ones(64, 33)[:, :32], ones(32, 48))
    assert not cpu.fits(ones(33, 64), ones(48, 33), left_is_transposed=True, right_is_transposed=True)
    assert not cpu.fits(ones(64, 32), ones(64, 32))  # no product
    assert not cpu.fits(ones(64, 32), ones(32, 48).float())
    assert not cpu.fits(ones(64, 32).double(), ones(32, 48).double())
    assert not cpu.fits(ones(64, 32)[:, ::2], ones(16, 32))
    assert not cpu.fits(ones(64, 8), ones(8, 64))
    assert not cpu.fits(ones(64, 32).to("meta"), ones(32, 48).to("meta"))
    assert cpu.fits(torch.nn.Parameter(ones(64, 32)), ones(32, 48)) == has_kernel
    assert not cpu.fits(ones(64, 32).as_subclass(Wrapped), ones(32, 48))
    monkeypatch.setattr(cpu, "is_intel", lambda: True)
    assert not cpu.is_quicker(torch.float32) and not cpu.is_quicker(torch.bfloat16)


def test_sizes_that_do_not_match_are_told(library: str) -> None:
    with pytest.raises(RuntimeError):
        matmul.product(torch.ones(64, 16), torch.ones(48, 32))
    with pytest.raises(RuntimeError):
        matmul.weight_gradient(torch.ones(64, 48), torch.ones(32, 16))
    with pytest.raises(RuntimeError):
        matmul.input_gradient(torch.ones(64, 16), torch.ones(32, 48))


def test_leading_sizes_stay(library: str) -> None:
    input_XI, weight_OI, gradient_XO = tensors((8, 16), 32, 48, torch.float32)
    products = matmul.product(input_XI, weight_OI), matmul.input_gradient(gradient_XO, weight_OI)
    assert [tuple(found.shape) for found in products] == [(8, 16, 48), (8, 16, 32)]
    if library != "oneDNN":  # Autograd functions may return them: they are no views.
        assert not any(found._is_view() for found in products)
    of_one_O = matmul.product(input_XI[0, 0], weight_OI)
    torch.testing.assert_close(of_one_O, input_XI[0, 0] @ weight_OI.T)


def test_large_products_alone_are_asked_of_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    true = matmul._onednn

    def counted(input_XI: Tensor, weight_OI: Tensor) -> Tensor:
        asked.append(tuple(input_XI.shape))
        return true(input_XI, weight_OI)

    monkeypatch.setattr(matmul, "_onednn", counted)
    monkeypatch.setattr(cpu, "is_quicker", lambda dtype: False)
    monkeypatch.setattr(matmul, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(matmul, "library", matmul.library.__wrapped__)  # it remembers nothing of this
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
    assert processor_vendor() == processor_vendor().strip()
    if not processor_vendor():
        assert not matmul.onednn_is_quicker()
