"""Output layer and cross-entropy in one: beside torch, over ranks, and what memory it takes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from llmscale_kernels import linear_cross_entropy as kernel
from llmscale_kernels.linear_cross_entropy import Vocabulary, linear_cross_entropy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.ranks import run_ranks

TOKENS, HIDDEN, TRUE, PADDED = 150, 12, 40, 60
TEMPERATURE = 0.7
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts, the last of them shorter."""
    monkeypatch.setattr(kernel, "ELEMENTS_AT_ONCE", 64 * TRUE)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, labels, and two weights a token."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH, weight_VH, weights_2T = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((TOKENS, HIDDEN), (PADDED, HIDDEN), (2, TOKENS))
    )
    labels_T = torch.randint(0, TRUE, (TOKENS,), generator=generator)
    return hidden_TH.to(dtype), weight_VH.to(dtype), labels_T, weights_2T


def by_torch(hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    logits_TV = F.linear(hidden_TH, weight_VH)[:, :TRUE] / TEMPERATURE
    logarithms_TV = logits_TV.log_softmax(-1)
    return F.cross_entropy(logits_TV, labels_T, reduction="none"), -(logarithms_TV.exp() * logarithms_TV).sum(
        -1
    )


def gradients_of(found: tuple[Tensor, Tensor | None], weights_2T: Tensor, *inputs: Tensor) -> Any:
    total = sum((one * weight_T.to(one)).sum() for one, weight_T in zip(found, weights_2T) if one is not None)
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_equals_torch(dtype: torch.dtype, with_entropy: bool) -> None:
    hidden_TH, weight_VH, labels_T, weights_2T = inputs(dtype)
    ours = hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    theirs = tuple(one.detach().double().requires_grad_() for one in ours)
    found = linear_cross_entropy(ours[0], ours[1], labels_T, Vocabulary(0, TRUE), TEMPERATURE, with_entropy)
    expected = by_torch(theirs[0], theirs[1], labels_T)
    assert (found[1] is not None) == with_entropy
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for one, other in zip(found, expected):
        if one is not None:
            assert one.dtype == wide
            torch.testing.assert_close(one.double(), other, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    own = gradients_of(found, weights_2T, *ours)
    wanted = gradients_of((expected[0], expected[1] if with_entropy else None), weights_2T, *theirs)
    assert not own[1][TRUE:].any()
    for one, other in zip(own, wanted, strict=True):
        assert one.dtype == dtype
        close = 10 * TOLERANCES[dtype]
        torch.testing.assert_close(one.double(), other, rtol=close, atol=close)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    hidden_TH, weight_VH, labels_T, weights_2T = inputs()
    learns = weight_VH if frozen == "hidden" else hidden_TH
    learns.requires_grad_()
    (own,) = gradients_of(
        linear_cross_entropy(hidden_TH, weight_VH, labels_T, Vocabulary(0, TRUE), TEMPERATURE),
        weights_2T,
        learns,
    )
    losses_T, _ = by_torch(hidden_TH, weight_VH, labels_T)
    (wanted,) = gradients_of((losses_T, None), weights_2T, learns)
    torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)


def test_no_tokens() -> None:
    """As of a microbatch in which nothing is learned."""
    hidden_TH, weight_VH, labels_T, _ = inputs()
    hidden_TH.requires_grad_()
    losses_T, entropies_T = linear_cross_entropy(
        hidden_TH[:0], weight_VH, labels_T[:0], Vocabulary(0, TRUE), with_entropy=True
    )
    assert losses_T.shape == (0,) and entropies_T is not None and entropies_T.shape == (0,)
    (gradient,) = torch.autograd.grad(losses_T.sum(), hidden_TH)
    assert not gradient.any()


def share(rank: int, ranks: int) -> tuple[Tensor, ...]:
    hidden_TH, weight_VH, labels_T, weights_2T = inputs()
    columns = PADDED // ranks
    first = rank * columns
    mine = weight_VH[first : first + columns].clone().requires_grad_()
    hidden_TH.requires_grad_()
    vocabulary = Vocabulary(first, max(0, min(columns, TRUE - first)), torch.distributed.group.WORLD)
    found = linear_cross_entropy(hidden_TH, mine, labels_T, vocabulary, TEMPERATURE, with_entropy=True)
    gradients = gradients_of(found, weights_2T, hidden_TH, mine)
    return tuple(one.detach() for one in (*found, *gradients) if one is not None)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_share_a_vocabulary(ranks: int) -> None:
    """Each hears the same and has its rows of the weight's gradient, and its part of that of the hidden
    states; of three one has nothing but padding."""
    hidden_TH, weight_VH, labels_T, weights_2T = inputs()
    for one in (hidden_TH, weight_VH):
        one.requires_grad_()
    whole = Vocabulary(0, TRUE)
    expected = linear_cross_entropy(hidden_TH, weight_VH, labels_T, whole, TEMPERATURE, with_entropy=True)
    of_hidden_TH, of_weight_VH = gradients_of(expected, weights_2T, hidden_TH, weight_VH)
    found = run_ranks(ranks, share, ranks)
    assert expected[1] is not None
    for told in found:
        for one, other in zip(told[:2], expected):
            assert other is not None
            torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-12)
    summed_TH = torch.stack([told[2] for told in found]).sum(0)
    torch.testing.assert_close(summed_TH, of_hidden_TH, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([told[3] for told in found]), of_weight_VH, rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that came about."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in _tensors(found):
            self.elements = max(self.elements, one.numel())
        return found


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def test_the_whole_logits_are_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, columns = 2048, 1024
    monkeypatch.setattr(kernel, "ELEMENTS_AT_ONCE", 64 * columns)
    hidden_TH, weight_VH = (
        torch.randn(tokens, 8, requires_grad=True),
        torch.randn(columns, 8, requires_grad=True),
    )
    labels_T = torch.randint(0, columns, (tokens,))

    def largest(with_logits: bool) -> int:
        with Largest() as seen:
            if with_logits:
                losses_T = F.cross_entropy(F.linear(hidden_TH, weight_VH), labels_T, reduction="none")
            else:
                losses_T, _ = linear_cross_entropy(hidden_TH, weight_VH, labels_T, Vocabulary(0, columns))
            losses_T.sum().backward()
        return seen.elements

    assert largest(with_logits=True) == tokens * columns
    assert largest(with_logits=False) <= 64 * columns
