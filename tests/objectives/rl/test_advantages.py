"""Advantages: beside loops over the papers' formulas, beside TRL, and by what must hold of them.

Shapes: N samples, S tokens.
"""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmscale.config.rlhf import OF_ALGORITHM, RlhfSection, UpdateSection
from llmscale.objectives.rl.advantages.gae import gae
from llmscale.objectives.rl.advantages.group_relative import EPSILON, group_relative
from llmscale.objectives.rl.advantages.leave_one_out import leave_one_out
from llmscale.objectives.rl.advantages.reinforce_plus_plus import reinforce_plus_plus
from llmscale.objectives.rl.advantages.rewarded import Rewarded
from llmscale.objectives.rl.advantages.table import ESTIMATORS, estimate_advantages
from llmscale.objectives.rl.kl import k1
from llmscale.objectives.rl.token_rewards import token_rewards
from llmscale.objectives.rl.whiten import moments, whitened
from tests.objectives.rl import trl_internals
from tests.objectives.rl.samples import GROUP, Samples, samples

SEEDS = range(4)
LISTS = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=8)


def rewarded_of(known: Samples, beta: float = 0.0) -> Rewarded:
    penalty_NS = beta * k1(known.old_NS - known.reference_NS)
    rewards_NS = token_rewards(known.score_N, known.learned_NS, penalty_NS)
    return Rewarded(rewards_NS, known.learned_NS, known.group_N, known.values_NS)


def turns(known: Samples) -> Samples:
    """With tokens of an environment between those that the policy chose."""
    learned_NS = known.learned_NS.clone()
    learned_NS[:, 2] = False
    learned_NS[:, 0] = True
    return replace(known, learned_NS=learned_NS)


def gae_by_hand(
    rewards: list[float], values: list[float], gamma: float, trace: float
) -> tuple[list[float], list[float]]:
    """Equation 16 of arXiv:1506.02438, as a sum; then advantages plus values."""
    last = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < last else 0.0) - values[t] for t in range(last)]
    advantages = [
        math.fsum((gamma * trace) ** (later - t) * deltas[later] for later in range(t, last))
        for t in range(last)
    ]
    return advantages, [advantage + value for advantage, value in zip(advantages, values)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gamma", "trace"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_generalised_advantages(seed: int, gamma: float, trace: float) -> None:
    for known in (samples(seed), turns(samples(seed))):
        rewarded = rewarded_of(known, beta=0.1)
        found = gae(rewarded, gamma, trace)
        assert found.returns_NS is not None
        for row, learned_S in enumerate(known.learned_NS):
            places = learned_S.nonzero()[:, 0]
            expected, returns = gae_by_hand(
                rewarded.rewards_NS[row, places].tolist(), known.values_NS[row, places].tolist(), gamma, trace
            )
            assert found.advantages_NS[row, places].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
            assert found.returns_NS[row, places].tolist() == pytest.approx(returns, rel=1e-12, abs=1e-12)
        assert not found.advantages_NS[~known.learned_NS].any()


def test_lambda_one_trusts_rewards_and_lambda_zero_the_critic() -> None:
    known = samples()
    rewarded = rewarded_of(known, beta=0.1)
    to_go_NS = rewarded.rewards_NS.flip(1).cumsum(1).flip(1)
    whole = gae(rewarded, 1.0, 1.0)
    expected_NS = torch.where(known.learned_NS, to_go_NS - known.values_NS, 0.0)
    torch.testing.assert_close(whole.advantages_NS, expected_NS)
    torch.testing.assert_close(whole.returns_NS, torch.where(known.learned_NS, to_go_NS, 0.0))
    one_step = gae(rewarded, 1.0, 0.0)
    assert one_step.returns_NS is not None
    last = int(known.learned_NS[0].sum()) - 1
    reward = rewarded.rewards_NS[0, last].item()
    assert one_step.returns_NS[0, last].item() == pytest.approx(reward, rel=1e-12)
    row = next(row for row in range(len(known.score_N)) if known.learned_NS[row, 1])
    wanted = rewarded.rewards_NS[row, 0] + known.values_NS[row, 1]
    assert one_step.returns_NS[row, 0].item() == pytest.approx(wanted.item())


def test_a_critic_that_knows_leaves_no_advantage() -> None:
    known = samples()
    rewards_NS = rewarded_of(known).rewards_NS
    values_NS = rewards_NS.flip(1).cumsum(1).flip(1)
    found = gae(Rewarded(rewards_NS, known.learned_NS, values_NS=values_NS), 1.0, 0.95)
    assert found.advantages_NS.abs().max() < 1e-15


def group_by_hand(scores: list[float], scale: str, of_all: list[float]) -> list[float]:
    mean = statistics.fmean(scores)
    by = {"none": None, "group": scores, "batch": of_all}[scale]
    divisor = 1.0 if by is None else statistics.stdev(by) + EPSILON
    return [(score - mean) / divisor for score in scores]


def at_first_tokens(values_NS: Tensor) -> list[float]:
    """The same at every learned token of a sample, and here the first is one."""
    return values_NS[:, 0].tolist()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("seed", SEEDS)
def test_group_relative(seed: int, scale: str) -> None:
    known = samples(seed)
    found_NS = group_relative(rewarded_of(known), scale).advantages_NS  # pyright: ignore[reportArgumentType]
    scores = known.score_N.tolist()
    expected = [
        advantage
        for start in range(0, len(scores), GROUP)
        for advantage in group_by_hand(scores[start : start + GROUP], scale, scores)
    ]
    assert at_first_tokens(found_NS) == pytest.approx(expected, rel=1e-12)
    spread_NS = torch.where(known.learned_NS, found_NS[:, :1], 0.0)
    torch.testing.assert_close(found_NS, spread_NS, rtol=0, atol=0)
    theirs_N = trl_internals.grpo_advantages(known.score_N, known.learned_NS, GROUP, scale)
    torch.testing.assert_close(found_NS[:, 0], theirs_N, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out(seed: int, beta: float) -> None:
    """Of rewards less what divergence costs."""
    known = samples(seed)
    found_NS = leave_one_out(rewarded_of(known, beta)).advantages_NS
    totals = [
        known.score_N[row].item()
        - beta * math.fsum((known.old_NS - known.reference_NS)[row, known.learned_NS[row]].tolist())
        for row in range(len(known.score_N))
    ]
    expected = [
        total - statistics.fmean(totals[other] for other in _others(row)) for row, total in enumerate(totals)
    ]
    assert at_first_tokens(found_NS) == pytest.approx(expected, rel=1e-12)
    theirs_N = trl_internals.rloo_advantages(
        known.score_N, known.learned_NS, GROUP, beta, known.old_NS, known.reference_NS
    )
    torch.testing.assert_close(found_NS[:, 0], theirs_N, rtol=1e-6, atol=1e-6)


def _others(row: int) -> list[int]:
    first = row // GROUP * GROUP
    return [other for other in range(first, first + GROUP) if other != row]


@pytest.mark.parametrize("has_baseline", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_plus_plus(seed: int, gamma: float, has_baseline: bool) -> None:
    known = turns(samples(seed))
    rewarded = rewarded_of(known, beta=0.2)
    found_NS = reinforce_plus_plus(rewarded, gamma, has_baseline).advantages_NS
    rows = [rewarded.rewards_NS[row, learned_S].tolist() for row, learned_S in enumerate(known.learned_NS)]
    to_go: list[list[float]] = []
    for row, rewards in enumerate(rows):
        if has_baseline:
            of_group = [math.fsum(rows[other]) for other in [row, *_others(row)]]
            rewards = [*rewards[:-1], rewards[-1] - statistics.fmean(of_group)]
        to_go.append(
            [
                math.fsum(gamma ** (later - t) * rewards[later] for later in range(t, len(rewards)))
                for t in range(len(rewards))
            ]
        )
    every = [one for row in to_go for one in row]
    mean, deviation = statistics.fmean(every), math.sqrt(statistics.variance(every) + 1e-8)
    for row, learned_S in enumerate(known.learned_NS):
        expected = [(one - mean) / deviation for one in to_go[row]]
        assert found_NS[row, learned_S].tolist() == pytest.approx(expected, rel=1e-10)


def group_of(scores: list[float], length: int = 3) -> Rewarded:
    score_N = torch.tensor(scores, dtype=torch.float64)
    learned_NS = torch.ones(len(scores), length, dtype=torch.bool)
    return Rewarded(
        token_rewards(score_N, learned_NS), learned_NS, torch.zeros(len(scores), dtype=torch.int64)
    )


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_advantages_of_a_group_sum_to_nothing(scores: list[float]) -> None:
    rewarded = group_of(scores)
    for found in (
        *(group_relative(rewarded, scale) for scale in ("group", "batch", "none")),
        leave_one_out(rewarded),
    ):
        assert abs(found.advantages_NS[:, 0].sum().item()) < 1e-8
    if len(set(scores)) == 1:
        assert not leave_one_out(rewarded).advantages_NS.any()


@settings(max_examples=60, deadline=None)
@given(LISTS, st.randoms(use_true_random=False), st.floats(-5, 5))
def test_order_and_offsets_change_nothing(scores: list[float], random: object, offset: float) -> None:
    """Whoever stands where in the batch: the same sample gets the same advantage."""
    order = list(range(len(scores)))
    random.shuffle(order)  # pyright: ignore[reportAttributeAccessIssue]
    for estimate in (leave_one_out, lambda rewarded: group_relative(rewarded, "none")):
        found = at_first_tokens(estimate(group_of(scores)).advantages_NS)
        moved = at_first_tokens(estimate(group_of([scores[place] + offset for place in order])).advantages_NS)
        assert moved == pytest.approx([found[place] for place in order], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(LISTS, st.floats(-10, 10))
def test_the_baseline_knows_nothing_of_its_answer(scores: list[float], other: float) -> None:
    """What makes it unbiased: a sample's own reward moves its own advantage by as much, and no baseline."""
    before = at_first_tokens(leave_one_out(group_of(scores)).advantages_NS)
    after = at_first_tokens(leave_one_out(group_of([other, *scores[1:]])).advantages_NS)
    assert after[0] - before[0] == pytest.approx(other - scores[0], abs=1e-9)


def test_leave_one_out_is_unbiased_and_the_mean_of_all_is_not() -> None:
    """All groups of two answers of a policy of two answers: the mean of A ∇log π is ∇ of the mean reward."""
    probability, rewards = 0.3, (1.0, 4.0)
    scores = ((1 - probability), -probability)  # ∂ log π / ∂ logit of each answer
    wanted = probability * (1 - probability) * (rewards[0] - rewards[1])
    shares = (probability, 1 - probability)
    pairs = [(first, second) for first in range(2) for second in range(2)]

    def mean_gradient(advantages: list[list[float]]) -> float:
        return sum(
            shares[a] * shares[b] * (of_pair[0] * scores[a] + of_pair[1] * scores[b]) / 2
            for (a, b), of_pair in zip(pairs, advantages, strict=True)
        )

    groups = [group_of([rewards[a], rewards[b]]) for a, b in pairs]
    left_out = [at_first_tokens(leave_one_out(group).advantages_NS) for group in groups]
    assert mean_gradient(left_out) == pytest.approx(wanted, rel=1e-12)
    relative = [at_first_tokens(group_relative(group, "none").advantages_NS) for group in groups]
    assert mean_gradient(relative) == pytest.approx(wanted / 2, rel=1e-12)


@pytest.mark.parametrize("estimate", [leave_one_out, lambda rewarded: group_relative(rewarded, "group")])
def test_groups_of_any_size_anywhere(estimate: object) -> None:
    """Samples without a learned token, and those that are alone, count for nothing."""
    score_N = torch.tensor([1.0, 5.0, 3.0, 2.0, torch.nan, 7.0], dtype=torch.float64)
    group_N = torch.tensor([4, 9, 4, 4, 4, 9])
    learned_NS = torch.ones(6, 2, dtype=torch.bool)
    learned_NS[4] = False
    learned_NS[5] = False
    found = estimate(Rewarded(token_rewards(score_N, learned_NS), learned_NS, group_N)).advantages_NS  # pyright: ignore[reportCallIssue]
    alone = estimate(group_of([1.0, 3.0, 2.0], 2)).advantages_NS  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(found[[0, 2, 3]], alone)
    assert not found[[1, 4, 5]].any()


def test_scores_stand_at_last_tokens() -> None:
    learned_NS = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    penalty_NS = torch.tensor([[9.0, 1.0, 2.0, 9.0], [3.0, 9.0, 4.0, 5.0], [9.0] * 4])
    score_N = torch.tensor([10.0, 20.0, torch.nan])
    found = token_rewards(score_N, learned_NS, penalty_NS)
    assert found.tolist() == [[0, -1, 8, 0], [-3, 0, -4, 15], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"\[2\] are not finite"):
        token_rewards(score_N, torch.ones(3, 4, dtype=torch.bool), penalty_NS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(-100, 100), st.floats(0.1, 100))
def test_whitened(seed: int, mean: float, deviation: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = mean + deviation * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    counts = torch.rand(5, 7, generator=generator) > 0.4
    counts[0, :3] = True
    values[~counts] = torch.nan
    # Two processes' sums are those of both.
    sums = moments(values[:2], counts[:2]) + moments(values[2:], counts[2:])
    found = whitened(values, counts, sums)
    assert abs(found[counts].mean().item()) < 1e-9
    assert found[counts].var().item() == pytest.approx(1.0, rel=1e-5)
    assert not found[~counts].any()
    kept = whitened(values, counts, sums, shift_mean=False)
    assert kept[counts].mean().item() == pytest.approx(values[counts].mean().item(), rel=1e-9, abs=1e-9)
    assert kept[counts].var().item() == pytest.approx(1.0, rel=1e-5)


def test_equal_values_are_whitened_to_nothing() -> None:
    values, counts = torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)
    assert whitened(values, counts, moments(values, counts)).abs().max() < 1e-3
    nothing = ~counts
    assert not whitened(values, nothing, moments(values, nothing)).any()


@pytest.mark.parametrize("algorithm", ESTIMATORS)
def test_every_algorithm_has_an_estimator(algorithm: str) -> None:
    """In the type of the rewards; and whitening is as asked for."""
    assert algorithm in OF_ALGORITHM
    known = samples()
    rewarded = rewarded_of(known)
    single = replace(rewarded, rewards_NS=rewarded.rewards_NS.float())
    options = RlhfSection.model_validate({"algorithm": algorithm})
    assert estimate_advantages(single, options).advantages_NS.dtype == torch.float32
    white = options.model_copy(update={"update": UpdateSection(whiten_advantages=True)})
    found = estimate_advantages(rewarded, white).advantages_NS[known.learned_NS]
    assert abs(found.mean().item()) < 1e-12 and found.var().item() == pytest.approx(1.0, rel=1e-6)


def test_whitened_rewards_keep_their_mean() -> None:
    known = samples()
    rewarded = rewarded_of(known, beta=0.1)
    plain = UpdateSection(whiten_advantages=False)
    asked = plain.model_copy(update={"whiten_rewards": True})
    deviation, mean = torch.std_mean(rewarded.rewards_NS[known.learned_NS])
    white_NS = torch.where(known.learned_NS, (rewarded.rewards_NS - mean) / deviation + mean, 0.0)
    scaled = replace(rewarded, rewards_NS=white_NS)
    found = estimate_advantages(rewarded, RlhfSection(update=asked))
    expected = estimate_advantages(scaled, RlhfSection(update=plain))
    torch.testing.assert_close(found.advantages_NS, expected.advantages_NS, rtol=1e-6, atol=1e-6)


def test_what_is_missing_is_told() -> None:
    bare = replace(rewarded_of(samples()), group_N=None, values_NS=None)
    with pytest.raises(ValueError, match="critic"):
        gae(bare, 1.0, 1.0)
    with pytest.raises(ValueError, match="groups"):
        leave_one_out(bare)
