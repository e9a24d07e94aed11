"""The critic's objective: beside the formula, and what it reports.

Shapes: S tokens, N answers.
"""

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.data.row import batch_of, empty_row
from llmscale.objectives.rl.told import token_values
from llmscale.objectives.value import Value
from tests.objectives.rl.samples import N, S, Samples, samples

MODEL: Any = None
"""The objective asks nothing of it."""


def batch_of_samples(known: Samples) -> Batch:
    tokens_NS = torch.zeros(N, S, dtype=torch.int64)
    signals = {"values": known.values_NS, "returns": known.policy_NS}
    return Batch(tokens_NS, tokens_NS, known.learned_NS.float(), tokens_NS, signals=signals)


def scores_of(known: Samples) -> Tensor:
    """[S, N, 1]."""
    return (known.values_NS + 0.3 * known.rollout_NS + 0.4).T[..., None].contiguous()


@pytest.mark.parametrize("clip", [None, 0.2])
def test_loss_and_figures(clip: float | None) -> None:
    known = samples(1)
    batch, scores_SNL = batch_of_samples(known), scores_of(known)
    learned_NS = known.learned_NS
    values, old, returns = (
        tensor[learned_NS].tolist() for tensor in (scores_SNL[..., 0].T, known.values_NS, known.policy_NS)
    )
    plain = [(v - r) ** 2 for v, r in zip(values, returns)]
    held = plain
    if clip is not None:
        held = [(min(max(v, o - clip), o + clip) - r) ** 2 for v, o, r in zip(values, old, returns)]
    objective = Value(clip)
    loss, sums = objective.loss_and_sums(MODEL, scores_SNL, batch)
    assert loss.item() == pytest.approx(sum(map(max, plain, held)) / 2, rel=1e-12)
    assert objective.count(batch) == len(values) and len(sums) == objective.sum_count
    found = objective.metrics(sums.tolist())
    errors = [r - v for v, r in zip(values, returns)]
    assert found["value_loss"] == pytest.approx(statistics.fmean(plain) / 2)
    assert found["value_clip_share"] == pytest.approx(
        statistics.fmean(float(h > p) for h, p in zip(held, plain))
    )
    assert found["value_mean"] == pytest.approx(statistics.fmean(values))
    assert found["return_mean"] == pytest.approx(statistics.fmean(returns))
    explained = 1 - statistics.pvariance(errors) / statistics.pvariance(returns)
    assert found["explained_variance"] == pytest.approx(explained)
    assert torch.autograd.gradcheck(
        lambda output: objective.loss_sum(MODEL, output, batch), scores_SNL.requires_grad_()
    )


def test_a_critic_that_knows_explains_all_and_one_that_does_not_nothing() -> None:
    known = samples()
    batch, objective = batch_of_samples(known), Value(None)

    def explained(values_NS: Tensor, returns_NS: Tensor) -> Any:
        told = replace(batch, signals={"returns": returns_NS})
        sums = objective.sums(MODEL, values_NS.T[..., None], told)
        return objective.metrics(sums.tolist())["explained_variance"]

    returns_NS = known.policy_NS
    assert explained(returns_NS, returns_NS) == pytest.approx(1.0)
    assert explained(torch.full_like(returns_NS, 7.0), returns_NS) == pytest.approx(0.0, abs=1e-9)
    assert explained(returns_NS, torch.full_like(returns_NS, 3.0)) is None


def test_values_of_tokens() -> None:
    """Of what is learned, wide enough."""
    known = samples()
    batch, scores_SNL = batch_of_samples(known), scores_of(known)
    assert torch.equal(token_values(scores_SNL, batch), scores_SNL[..., 0].T * known.learned_NS)
    assert token_values(scores_SNL.bfloat16(), batch).dtype == torch.float32


def test_rows_that_only_fill_count_nothing_and_what_is_missing_is_told() -> None:
    objective = Value(0.2)
    filling = batch_of([empty_row(S)])
    loss, sums = objective.loss_and_sums(MODEL, torch.randn(S, 1, 1), filling)
    assert loss.item() == 0 and not sums.any() and objective.count(filling) == 0
    assert objective.metrics(sums.tolist())["explained_variance"] is None
    known = samples()
    batch = replace(batch_of_samples(known), signals={"returns": known.policy_NS})
    with pytest.raises(ValueError, match="no values"):
        objective.loss_sum(MODEL, scores_of(known), batch)
