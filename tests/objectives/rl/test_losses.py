"""Losses and divergences: beside loops over the papers' formulas, and what their gradients are on average."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmscale.config.rlhf import KlSection, OverlongSection
from llmscale.objectives.rl.adaptive_kl import KlCoefficient
from llmscale.objectives.rl.importance import truncated_weights
from llmscale.objectives.rl.kl import ESTIMATORS
from llmscale.objectives.rl.losses.clipped import clipped
from llmscale.objectives.rl.losses.value import value_loss
from llmscale.objectives.rl.overlong import overlong_reward, without_truncated

CLIP, HIGH, DUAL = 0.2, 0.28, 3.0


def clipped_by_hand(log_ratio: float, advantage: float, dual_clip: float | None) -> float:
    """arXiv:1707.06347, equation 7, with the bounds of arXiv:2503.14476; arXiv:1912.09729, equation 5."""
    ratio = math.exp(log_ratio)
    objective = min(ratio * advantage, min(max(ratio, 1 - CLIP), 1 + HIGH) * advantage)
    if dual_clip is not None and advantage < 0:
        objective = max(objective, dual_clip * advantage)
    return -objective


def spread_out(seed: int = 0, count: int = 200) -> tuple[Tensor, Tensor]:
    """Logarithms of ratios in and beyond all bounds, and advantages."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # pyright: ignore[reportReturnType]
        torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(2)
    )


@pytest.mark.parametrize("dual_clip", [None, DUAL])
def test_clipped_surrogate(dual_clip: float | None) -> None:
    log_ratio, advantages = spread_out()
    found = clipped(log_ratio, advantages, CLIP, HIGH, dual_clip)
    pairs = list(zip(log_ratio.tolist(), advantages.tolist()))
    expected = [clipped_by_hand(*pair, dual_clip) for pair in pairs]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.is_low.tolist() == [math.exp(r) < 1 - CLIP and a < 0 for r, a in pairs]
    assert found.is_high.tolist() == [math.exp(r) > 1 + HIGH and a > 0 for r, a in pairs]
    assert found.is_dual.tolist() == [
        dual_clip is not None and math.exp(r) > DUAL and a < 0 for r, a in pairs
    ]
    assert found.is_low.any() and found.is_high.any() and bool(found.is_dual.any()) == bool(dual_clip)


@pytest.mark.parametrize("dual_clip", [None, DUAL])
def test_gradient_of_the_clipped_surrogate(dual_clip: float | None) -> None:
    """That of differences; and exactly none where a bound is met."""
    log_ratio, advantages = spread_out(1)
    log_ratio.requires_grad_()
    found = clipped(log_ratio, advantages, CLIP, HIGH, dual_clip)
    (gradient,) = torch.autograd.grad(found.loss.sum(), log_ratio)
    held = found.is_low | found.is_high | found.is_dual
    assert not gradient[held].any()
    assert torch.equal(gradient[~held], (-found.ratio * advantages)[~held])
    step = 1e-6
    for place in range(0, len(log_ratio), 7):
        r, a = log_ratio[place].item(), advantages[place].item()
        up, down = (clipped_by_hand(r + sign * step, a, dual_clip) for sign in (1, -1))
        assert gradient[place].item() == pytest.approx((up - down) / 2 / step, abs=1e-7)


def test_the_same_policy_has_a_ratio_of_one() -> None:
    nothing, advantages = torch.zeros(5), torch.randn(5)
    found = clipped(nothing, advantages, CLIP, HIGH, DUAL)
    assert torch.equal(found.ratio, torch.ones(5)) and torch.equal(found.loss, -advantages)
    assert not (found.is_low | found.is_high | found.is_dual).any()
    assert all(not estimator(nothing).any() for estimator in ESTIMATORS.values())


def test_impossible_tokens_give_no_infinity() -> None:
    log_ratio = torch.tensor([1000.0, 1000.0, -1000.0, -1000.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    total = clipped(log_ratio, advantages, CLIP, HIGH, None).loss.sum()
    total = total + sum(estimator(log_ratio).sum() for estimator in ESTIMATORS.values())
    (gradient,) = torch.autograd.grad(total, log_ratio)
    assert total.isfinite() and gradient.isfinite().all()


def test_value_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 100, generator=generator, dtype=torch.float64)
    values = values.requires_grad_()
    for clip in (None, 0.2, 1.0):
        found = value_loss(values, old, returns, clip)
        expected, is_clipped = [], []
        for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist()):
            plain = (v - r) ** 2
            held = plain if clip is None else (min(max(v, o - clip), o + clip) - r) ** 2
            expected.append(max(plain, held) / 2)
            is_clipped.append(held > plain)
        assert found.loss.tolist() == pytest.approx(expected, rel=1e-12)
        assert found.is_clipped.tolist() == is_clipped
        (gradient,) = torch.autograd.grad(found.loss.sum(), values)
        assert not gradient[found.is_clipped].any()
        free = ~found.is_clipped
        torch.testing.assert_close(gradient[free], (values - returns)[free])
        assert torch.autograd.gradcheck(lambda v, c=clip: value_loss(v, old, returns, c).loss, values)


def test_estimators() -> None:
    log_ratio, _ = spread_out(2)
    formulas = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
    for name, formula in formulas.items():
        expected = [formula(d) for d in log_ratio.tolist()]
        assert ESTIMATORS[name](log_ratio).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


class Distributions:
    """A policy, an older one and a reference over a few tokens: means over them are sums."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits, old, reference = torch.randn(3, 7, generator=generator, dtype=torch.float64)
        self.logits.requires_grad_()
        self.policy = self.logits.log_softmax(-1)
        self.old, self.reference = old.log_softmax(-1), reference.log_softmax(-1)
        self.difference = self.policy - self.reference
        self.divergence = (self.policy.exp() * self.difference).sum()

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]

    def mean_under(self, log_probabilities: Tensor, values: Tensor) -> Tensor:
        return (log_probabilities.detach().exp() * values).sum()


@pytest.mark.parametrize("seed", range(3))
def test_what_estimators_are_on_average(seed: int) -> None:
    known = Distributions(seed)
    for name in ("k1", "k3"):
        mean = known.mean_under(known.policy, ESTIMATORS[name](known.difference))
        assert mean.item() == pytest.approx(known.divergence.item(), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_which_gradient_is_that_of_the_divergence(seed: int) -> None:
    """What `llmscale.objectives.rl.kl` says of rewards and losses."""
    known = Distributions(seed)
    wanted = known.gradient(known.divergence)

    def in_reward(name: str) -> Tensor:
        fixed = ESTIMATORS[name](known.difference).detach()
        return known.gradient(known.mean_under(known.policy, fixed * known.policy))

    def in_loss(name: str) -> Tensor:
        return known.gradient(known.mean_under(known.policy, ESTIMATORS[name](known.difference)))

    def weighted(name: str) -> Tensor:
        ratio = (known.policy - known.old).exp()
        return known.gradient(known.mean_under(known.old, ratio * ESTIMATORS[name](known.difference)))

    for right in (in_reward("k1"), in_loss("k2"), weighted("k1"), weighted("k3")):
        torch.testing.assert_close(right, wanted, rtol=1e-10, atol=1e-12)
    assert in_loss("k1").abs().max() < 1e-12
    for biased in (in_reward("k2"), in_reward("k3"), in_loss("k3"), weighted("k2")):
        assert (biased - wanted).abs().max() > 0.01 * wanted.abs().max()


def test_truncated_importance_weights() -> None:
    old, rollout = spread_out(3)
    found = truncated_weights(old.requires_grad_(), rollout, 2.0)
    expected = [min(math.exp(a - b), 2.0) for a, b in zip(old.tolist(), rollout.tolist())]
    assert found.tolist() == pytest.approx(expected, rel=1e-12) and not found.requires_grad
    assert 2.0 in expected and min(expected) < 1
    assert torch.equal(truncated_weights(old, old, 2.0), torch.ones_like(old))


def test_the_coefficient_is_steered() -> None:
    """arXiv:1909.08593, section 2.2; errors beyond 0.2 count as 0.2."""
    options = KlSection(coefficient=0.1, target=6.0, horizon=1000)
    first = KlCoefficient.first(options)
    for divergence, error in ((6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (5.4, -0.1), (0.0, -0.2), (-3.0, -0.2)):
        assert first.after(divergence, 50).value == pytest.approx(0.1 * (1 + error * 50 / 1000))
    assert first.after(0.0, 10**6).value == pytest.approx(0.01), "it never changes its sign"
    later = first.after(60.0, 50)
    assert KlCoefficient.from_json(options, later.as_json()) == later
    fixed = KlSection(coefficient=0.1)
    assert KlCoefficient.first(fixed).after(60.0, 50).value == 0.1
    assert KlCoefficient.from_json(fixed, {"coefficient": 0.7}).value == 0.1
    for broken in ({}, {"coefficient": "much"}, {"coefficient": True}):
        with pytest.raises(ValueError, match="in place of a number"):
            KlCoefficient.from_json(options, broken)  # pyright: ignore[reportArgumentType]


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1.0), st.floats(0.5, 20.0))
def test_the_coefficient_leads_to_the_target(coefficient: float, target: float) -> None:
    """Of a policy whose divergence falls as the coefficient grows."""
    now = KlCoefficient.first(KlSection(coefficient=coefficient, target=target, horizon=100))
    divergence = 1.0 / now.value
    for _ in range(500):
        now = now.after(divergence, 50)
        divergence = 1.0 / now.value
    assert divergence == pytest.approx(target, rel=1e-2)


def test_long_answers_are_punished_softly() -> None:
    """arXiv:2503.14476, equation 13: L_max = 100, L_cache = 20."""
    options = OverlongSection(buffer=20, penalty=2.0)
    tokens = [1, 79, 80, 81, 90, 100, 130]

    def by_hand(length: int) -> float:
        if length <= 100 - 20:
            return 0.0
        return ((100 - 20) - length) / 20 if length <= 100 else -1.0

    found = overlong_reward(torch.tensor(tokens), 100, options)
    assert found.tolist() == pytest.approx([2.0 * by_hand(length) for length in tokens])
    assert not overlong_reward(torch.tensor(tokens), 100, OverlongSection()).any()


@pytest.mark.parametrize("learns", [True, False])
def test_truncated_answers(learns: bool) -> None:
    learned_NS = torch.tensor([[1, 1], [0, 1]]).bool()
    finished_N = torch.tensor([False, True])
    found = without_truncated(learned_NS, finished_N, OverlongSection(learn_truncated=learns))
    expected: Any = [[learns, learns], [False, True]]
    assert found.tolist() == expected
