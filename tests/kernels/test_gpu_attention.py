"""Attention on GPUs, as far as it goes without one: what FlashAttention is told, and who is asked."""

from typing import Any

import pytest
import torch
from llmscale_kernels import attention as dispatch
from llmscale_kernels.attention import attention_reference
from llmscale_kernels.documents import Lengths
from llmscale_kernels.gpu import attention as gpu
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

CUDA = torch.device("cuda", 0)
CASES: dict[str, tuple[Lengths, Lengths | None, int | None]] = {
    "documents": (((3, 8, 1), (12,)), None, None),
    "window": (((3, 9), (12,)), None, 4),
    "window of one": (((12,),), None, 1),
    "answers go on from a prompt": (((4, 3, 2, 3), (2, 5, 5)), ((0, 4, 4, 4), (0, 0, 5)), None),
    "answers and a window": (((4, 3, 5),), ((0, 4, 4),), 3),
}
"""Documents of each row, what each goes on from, window."""


def by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch says that `varlen_attn` computes, one document after the other."""
    assert int(query_ends.diff().max()) == most_queries and int(key_ends.diff().max()) == most_keys
    outputs = []
    for number in range(len(query_ends) - 1):
        own = query[query_ends[number] : query_ends[number + 1]]
        keys, values = (tensor[key_ends[number] : key_ends[number + 1]] for tensor in (key, value))
        assert enable_gqa or own.shape[1] == keys.shape[1]
        keys, values = (t.repeat_interleave(own.shape[1] // t.shape[1], dim=1) for t in (keys, values))
        scores = torch.einsum("qnd,knd->nqk", own, keys) / own.shape[-1] ** 0.5
        # The last query stands at the last key.
        distance = torch.arange(len(own))[:, None] + len(keys) - len(own) - torch.arange(len(keys))
        left, right = window_size
        hidden = (distance < -right) | ((distance > left) if left >= 0 else torch.tensor(False))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("nqk,knd->qnd", weights, values))
    return torch.cat(outputs)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_places_of_documents(name: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.varlen, "varlen_attn", by_definition)
    lengths, before, window = CASES[name]
    inputs = made(len(lengths), 12, kv_heads, torch.float64)
    places = gpu._places(lengths, before, 12, torch.device("cpu"))
    assert (places.keys is None) == (before is None)
    found = gpu.of_documents(*inputs, places, window)
    expected = attention_reference(*inputs, lengths, window, before)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def made(rows: int, sequence: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(sequence, rows, heads, 64, dtype=dtype).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("name", ["rows", *CASES])
def test_torch_takes_what_it_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes only: tensors of a GPU that is not there, through the operations that are run on one."""
    pretend(monkeypatch, generation=8)
    lengths, before, window = CASES.get(name, (((12,), (12,)), None, None))
    with FakeTensorMode():
        query, key, value = (
            torch.empty(12, len(lengths), heads, 64, dtype=torch.bfloat16, device="cuda")
            for heads in (4, 2, 2)
        )
        assert dispatch.fits(query)
        if name == "rows":
            found = dispatch.attention(query, key, value, lengths, window, before)
        else:
            places = gpu._places.__wrapped__(lengths, before, 12, CUDA)
            found = gpu.of_documents(query, key, value, places, window)
    assert found.shape == query.shape and found.dtype == query.dtype


@pytest.mark.parametrize(
    "dtype, head_size, generation, answer",
    [
        (torch.bfloat16, 128, 9, True),
        (torch.float16, 64, 8, True),
        (torch.float32, 128, 9, False),
        (torch.bfloat16, 288, 9, False),
        (torch.bfloat16, 20, 9, False),
        (torch.bfloat16, 128, 7, False),
    ],
)
def test_what_flash_attention_takes(
    dtype: torch.dtype, head_size: int, generation: int, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, generation)
    with FakeTensorMode():
        assert dispatch.fits(torch.empty(8, 1, 2, head_size, dtype=dtype, device="cuda")) is answer


@pytest.mark.parametrize(
    "generation, flash_3, first", [(8, False, "FLASH"), (9, False, "CUDNN"), (9, True, "FLASH")]
)
def test_who_is_asked_first(
    generation: int, flash_3: bool, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, generation, flash_3)
    order = gpu._order(CUDA)
    assert order[0] == getattr(SDPBackend, f"{first}_ATTENTION")
    assert set(order) == {
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    }
    assert first.lower() in gpu.path_and_reason(CUDA).replace("cuDNN", "cudnn").lower().split(",")[0]


def pretend(monkeypatch: pytest.MonkeyPatch, generation: int, flash_3: bool = False) -> None:
    """As if there were a GPU of this generation."""
    monkeypatch.setattr(gpu, "_generation", lambda device: generation)
    monkeypatch.setattr(gpu, "_order", gpu._order.__wrapped__)
    monkeypatch.setattr(gpu, "activated_flash_attention_3", lambda device: flash_3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["rows", *CASES])
def test_on_a_gpu(name: str) -> None:
    lengths, before, window = CASES.get(name, (((12,), (12,)), None, None))
    inputs = made(len(lengths), 12, 2, torch.float64)
    halves: list[Any] = [tensor.detach().to(CUDA, torch.bfloat16).requires_grad_() for tensor in inputs]
    assert dispatch.fits(halves[0])
    found = dispatch.attention(*halves, lengths, window, before)
    expected = attention_reference(*inputs, lengths, window, before)
    weights = torch.randn_like(expected)
    pairs = [(found, expected)]
    pairs += zip(
        torch.autograd.grad(found, halves, weights.to(CUDA, torch.bfloat16)),
        torch.autograd.grad(expected, inputs, weights),
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=5e-2, atol=5e-2)
