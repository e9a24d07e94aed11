"""Cross-entropy and entropy in one pass: beside torch, and of a vocabulary that ranks share."""

import pytest
import torch
import torch.distributed
from torch import Tensor

from llmscale.model.entropy import ROWS_AT_ONCE, cross_entropy_and_entropy
from tests.ranks import run_ranks

TOKENS, TRUE, PADDED = ROWS_AT_ONCE + 9, 40, 60
TEMPERATURE = 0.7


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float64, padding included; labels; and two weights a token."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 3 * torch.randn(TOKENS, PADDED, generator=generator, dtype=torch.float64)
    logits_TV[3, 5] = -torch.inf
    labels_T = torch.randint(0, TRUE, (TOKENS,), generator=generator)
    labels_T[3] = 6
    return logits_TV, labels_T, torch.randn(2, TOKENS, generator=generator, dtype=torch.float64)


def by_torch(logits_TV: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    wide_TV = logits_TV[:, :TRUE].double() / TEMPERATURE
    # Minus infinity × 0 has no gradient there.
    logarithms_TV = wide_TV.clamp(min=-1e4).log_softmax(-1)
    entropies_T = -(logarithms_TV.exp() * logarithms_TV).sum(-1)
    return -logarithms_TV.gather(1, labels_T[:, None])[:, 0], entropies_T


def gradient_of(losses_T: Tensor, entropies_T: Tensor, weights_2T: Tensor, logits_TV: Tensor) -> Tensor:
    total = (losses_T * weights_2T[0]).sum() + (entropies_T * weights_2T[1]).sum()
    return torch.autograd.grad(total, logits_TV)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_torch(dtype: torch.dtype) -> None:
    logits_TV, labels_T, weights_2T = inputs()
    ours = logits_TV.to(dtype).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    found = cross_entropy_and_entropy(ours * 1.0, labels_T, TEMPERATURE, 0, TRUE)
    expected = by_torch(theirs, labels_T)
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]
    for one, other in zip(found, expected):
        assert one.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(one.double(), other, rtol=close, atol=close)
    gradient = gradient_of(*found, weights_2T.to(found[0].dtype), ours)
    wanted = gradient_of(*expected, weights_2T, theirs)
    assert not gradient[:, TRUE:].any() and gradient.isfinite().all()
    close = 4e-2 if dtype == torch.bfloat16 else close * 10
    torch.testing.assert_close(gradient.double(), wanted, rtol=close, atol=close)


def test_gradients_are_those_of_differences() -> None:
    """Of each of the two alone, and of both."""
    logits_TV, labels_T, weights_2T = inputs()
    logits_TV, labels_T, weights_2T = logits_TV[10:12], labels_T[10:12], weights_2T[:, 10:12]

    def total(logits_TV: Tensor, kept: Tensor) -> Tensor:
        found = cross_entropy_and_entropy(logits_TV * 1.0, labels_T, TEMPERATURE, 0, TRUE)
        return sum((one * weight_T).sum() for one, weight_T, keep in zip(found, weights_2T, kept) if keep)  # pyright: ignore[reportReturnType]

    step = 1e-5 * torch.eye(logits_TV.numel(), dtype=torch.float64).view(-1, *logits_TV.shape)
    for kept in torch.tensor([[1, 0], [0, 1], [1, 1]]):
        ours = logits_TV.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total(ours, kept), ours)
        wanted = [(total(logits_TV + one, kept) - total(logits_TV - one, kept)) / 2e-5 for one in step]
        torch.testing.assert_close(gradient.flatten(), torch.stack(wanted), rtol=1e-7, atol=1e-8)
        assert gradient.abs().max() > 0.01


def share(rank: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    logits_TV, labels_T, weights_2T = inputs()
    columns = PADDED // ranks
    first = rank * columns
    mine = logits_TV[:, first : first + columns].clone().requires_grad_()
    true = max(0, min(columns, TRUE - first))
    group = torch.distributed.group.WORLD
    found = cross_entropy_and_entropy(mine * 1.0, labels_T, TEMPERATURE, first, true, group)
    gradient = gradient_of(*found, weights_2T, mine)
    return found[0].detach(), found[1].detach(), gradient


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_share_a_vocabulary(ranks: int) -> None:
    """Each hears the same, and has its columns of the gradient; of three one has nothing but padding."""
    logits_TV, labels_T, weights_2T = inputs()
    alone_TV = logits_TV.requires_grad_()
    expected = cross_entropy_and_entropy(alone_TV * 1.0, labels_T, TEMPERATURE, 0, TRUE)
    wanted_TV = gradient_of(*expected, weights_2T, alone_TV)
    found = run_ranks(ranks, share, ranks)
    for losses_T, entropies_T, _ in found:
        torch.testing.assert_close(losses_T, expected[0].detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(entropies_T, expected[1].detach(), rtol=1e-12, atol=1e-12)
    gradient_TV = torch.cat([gradient for *_, gradient in found], dim=1)
    torch.testing.assert_close(gradient_TV, wanted_TV, rtol=1e-12, atol=1e-12)
