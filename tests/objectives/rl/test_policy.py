"""The policy's objective: beside TRL's losses and loops over the papers; an answer a row, and several.

Shapes: S tokens, B rows, N answers, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmscale.config.rlhf import RlhfSection
from llmscale.data.batch import Batch
from llmscale.data.row import Row, batch_of, empty_row
from llmscale.objectives.policy import Policy
from llmscale.objectives.rl.told import token_figures
from tests.objectives.logits_model import logits_model
from tests.objectives.rl import trl_internals
from tests.objectives.rl.samples import N, S, Samples, samples

VOCABULARY = 11
LONGEST = 9
MODEL = logits_model(VOCABULARY)
"""What the objectives ask of a model."""


def signals_of(known: Samples) -> dict[str, Tensor]:
    return {
        "old_log_probabilities": known.old_NS,
        "rollout_log_probabilities": known.rollout_NS,
        "reference_log_probabilities": known.reference_NS,
        "advantages": torch.where(known.learned_NS, known.advantages_N[:, None], 0.0),
    }


def labels_of(known: Samples) -> Tensor:
    return torch.randint(VOCABULARY, (N, S), generator=torch.Generator().manual_seed(5))


def batch_of_samples(known: Samples) -> Batch:
    """An answer a row."""
    labels_NS = labels_of(known)
    positions_NS = torch.arange(S).expand(N, -1)
    return Batch(labels_NS, labels_NS, known.learned_NS.float(), positions_NS, signals=signals_of(known))


def logits_of(known: Samples) -> Tensor:
    """[S, N, V], by which the labels are about as likely as `known.old_NS` says."""
    generator = torch.Generator().manual_seed(3)
    noise_SNV = 0.8 * torch.randn(S, N, VOCABULARY, generator=generator, dtype=torch.float64)
    labels_SN1 = labels_of(known).T[..., None]
    # The others have 0: p = e^z / (e^z + V − 1).
    chance_SN = known.old_NS.T.exp().clamp(max=0.9)
    wanted_SN = (chance_SN / (1 - chance_SN) * (VOCABULARY - 1)).log()
    return noise_SNV.scatter(2, labels_SN1, wanted_SN[..., None] + noise_SNV.gather(2, labels_SN1))


def by_torch(logits_SNV: Tensor, known: Samples, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, [N, S]."""
    logarithms_SNV = (logits_SNV / temperature).log_softmax(-1)
    policy_SN = logarithms_SNV.gather(2, labels_of(known).T[..., None])[..., 0]
    return policy_SN.T, -(logarithms_SNV.exp() * logarithms_SNV).sum(-1).T


def mean_loss(objective: Policy, logits_SNV: Tensor, batch: Batch) -> Tensor:
    """As the engine makes it of one microbatch; backward overwrites the logits."""
    return objective.loss_sum(MODEL, logits_SNV * 1.0, batch) / objective.count(batch)


def policy_of(tree: Mapping[str, Any], **options: Any) -> Policy:
    section = {"algorithm": "grpo", "kl": {"coefficient": 0.0}, **tree}
    return Policy(RlhfSection.model_validate(section), longest_answer=LONGEST, **options)


def updating(kl: Mapping[str, Any] | None = None, **update: Any) -> dict[str, Any]:
    bounds = {"clip": 0.2, "clip_high": 0.28}
    return {"update": {**bounds, **update}, "kl": kl or {"coefficient": 0.0}}


K3 = {"coefficient": 0.1, "penalty": "loss", "estimator": "k3"}
OF_TRL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # ours -> theirs
    "grpo": (updating(K3, normalisation="sequence"), {"loss_type": "grpo", "beta": 0.1}),
    "dapo": (updating(normalisation="token"), {"loss_type": "dapo"}),
    "bnpo": (updating(K3, normalisation="token"), {"loss_type": "bnpo", "beta": 0.1}),
    "dr_grpo": (updating(normalisation="constant"), {"loss_type": "dr_grpo"}),
    "dual clip": (updating(dual_clip=1.5), {"loss_type": "dapo", "delta": 1.5}),
    "entropy": (updating(entropy=0.05), {"loss_type": "dapo", "entropy": 0.05}),
    "weighted": (
        updating({**K3, "weighted": True}),
        {"loss_type": "dapo", "beta": 0.1, "weighted": True},
    ),
    "gspo": (
        updating(ratio="geometric", normalisation="sequence"),
        {"loss_type": "grpo", "ratio": "sequence"},
    ),
}


@pytest.mark.parametrize("name", OF_TRL)
@pytest.mark.parametrize("seed", [3, 4])
def test_losses_of_trl(name: str, seed: int) -> None:
    """Loss and gradient by the logits, with and without weights for what the rollout thought otherwise."""
    ours, theirs = OF_TRL[name]
    known = samples(seed)
    for cap in (None, 1.1):
        logits_SNV = logits_of(known).requires_grad_()
        found = mean_loss(policy_of(ours, importance_cap=cap), logits_SNV, batch_of_samples(known))
        other_SNV = logits_of(known).requires_grad_()
        policy_NS, entropy_NS = by_torch(other_SNV, known)
        signals = {
            "advantages": known.advantages_N,
            "old_per_token_logps": known.old_NS,
            "ref_per_token_logps": known.reference_NS,
        }
        if cap is not None:
            signals["importance_sampling_ratio"] = (known.old_NS - known.rollout_NS).exp().clamp(max=cap)
        options = {"ratio": "token", "clip": 0.2, "clip_high": 0.28, "longest": LONGEST, **theirs}
        expected = trl_internals.grpo_loss(policy_NS, entropy_NS, known.learned_NS, signals, **options)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        gradients = [
            torch.autograd.grad(one, at)[0] for one, at in ((found, logits_SNV), (expected, other_SNV))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
        assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_loss_of_rloo(seed: int) -> None:
    """An answer is one action."""
    known = samples(seed)
    known = replace(known, old_NS=by_torch(logits_of(known), known)[0] + 0.05 * known.values_NS)
    logits_SNV, other_SNV = logits_of(known).requires_grad_(), logits_of(known).requires_grad_()
    options = {"algorithm": "rloo", **updating(ratio="product", normalisation="sequence")}
    found = mean_loss(policy_of(options), logits_SNV, batch_of_samples(known))
    expected = trl_internals.rloo_loss(
        by_torch(other_SNV, known)[0], known.learned_NS, known.old_NS, known.advantages_N, 0.2, 0.28
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(one, at)[0] for one, at in ((found, logits_SNV), (expected, other_SNV))]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


ESTIMATORS: dict[str, Callable[[float], float]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
}
MINE: list[dict[str, Any]] = [
    updating({"coefficient": 0.3, "penalty": "loss", "estimator": estimator, "weighted": weighted}, **update)
    for estimator, weighted in (("k1", True), ("k2", False), ("k2", True), ("k3", False))
    for update in (
        {"normalisation": "sequence", "entropy": 0.1},
        {"normalisation": "constant", "dual_clip": 1.4},
        {"ratio": "product", "normalisation": "constant"},
    )
]


def by_hand(known: Samples, policy_NS: Tensor, entropy_NS: Tensor, options: RlhfSection, cap: float) -> float:
    """Loops over the answers and their tokens, in Python's numbers."""
    update, kl, total, terms = options.update, options.kl, 0.0, 0.0
    for row in range(N):
        length = int(known.learned_NS[row].sum())
        logs = [(policy_NS[row, t] - known.old_NS[row, t]).item() for t in range(length)]
        whole = {"token": None, "geometric": math.fsum(logs) / length, "product": math.fsum(logs)}[
            update.ratio
        ]
        weight = {"token": 1.0, "sequence": 1 / length, "constant": 1 / LONGEST}[update.normalisation]
        terms += length if update.normalisation == "token" else 1
        advantage = known.advantages_N[row].item()
        for t in range(length):
            ratio = math.exp(logs[t] if whole is None else whole)
            gain = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
            if update.dual_clip and advantage < 0:
                gain = max(gain, update.dual_clip * advantage)
            trusted = min(math.exp((known.old_NS[row, t] - known.rollout_NS[row, t]).item()), cap)
            loss = -gain * trusted - update.entropy * entropy_NS[row, t].item()
            apart = ESTIMATORS[kl.estimator_or_default](
                (policy_NS[row, t] - known.reference_NS[row, t]).item()
            )
            loss += kl.coefficient * apart * (math.exp(logs[t]) if kl.weighted else 1.0)
            total += weight * loss
    return total / terms


@pytest.mark.parametrize("options", MINE, ids=str)
def test_losses_by_hand(options: dict[str, Any]) -> None:
    known = samples(1)
    objective = policy_of(options, importance_cap=1.2, temperature=0.8)
    logits_SNV = logits_of(known)
    policy_NS, entropy_NS = by_torch(logits_SNV, known, 0.8)
    found = mean_loss(objective, logits_SNV, batch_of_samples(known)).item()
    assert found == pytest.approx(by_hand(known, policy_NS, entropy_NS, objective.options, 1.2), rel=1e-10)


def packed(known: Samples) -> list[Row]:
    """The same answers, two a row behind a token of their prompts, and padding."""
    rows: list[Row] = []
    labels_NS, signals = labels_of(known), signals_of(known)
    for first in range(0, N, 2):
        lengths = [1 + int(known.learned_NS[row].sum()) for row in (first, first + 1)]
        padding = 2 * S + 4 - sum(lengths)

        def laid_out(values_NS: Tensor, first: int = first, padding: int = padding) -> Tensor:
            parts = [
                part
                for row in (first, first + 1)
                for part in (values_NS.new_zeros(1), values_NS[row][known.learned_NS[row]])
            ]
            return torch.cat((*parts, values_NS.new_zeros(padding)))

        labels_S = laid_out(labels_NS)
        rows.append(
            Row(
                tokens_S=labels_S,
                labels_S=labels_S,
                loss_mask_S=laid_out(torch.ones(N, S)),
                position_ids_S=torch.cat([torch.arange(length) for length in (*lengths, padding)]),
                document_lengths=(*lengths, padding),
                padding=padding,
                signals={name: laid_out(signal_NS) for name, signal_NS in signals.items()},
            )
        )
    return [*rows, empty_row(2 * S + 4)]


def packed_logits(logits_SNV: Tensor, known: Samples, batch: Batch) -> Tensor:
    """Those of the batch's `counted_C`, [C, 1, V]."""
    rows, length = batch.tokens_BS.shape
    whole_SBV = logits_SNV.new_zeros(length, rows, VOCABULARY)
    for answer in range(N):
        tokens = int(known.learned_NS[answer].sum())
        row = answer // 2
        start = 1 if answer % 2 == 0 else 2 + int(known.learned_NS[answer - 1].sum())
        whole_SBV[start : start + tokens, row] = logits_SNV[:tokens, answer]
    assert batch.counted_C is not None
    return whole_SBV.flatten(0, 1)[batch.counted_C][:, None]


@pytest.mark.parametrize("options", MINE[:3] + [updating(ratio="geometric")], ids=str)
def test_answers_that_share_rows(options: dict[str, Any]) -> None:
    """Loss, figures and gradients are those of an answer a row; only counted tokens have logits."""
    known = samples(2)
    objective = policy_of(options, importance_cap=1.2)
    batch = batch_of(packed(known))
    ours, theirs = logits_of(known).requires_grad_(), logits_of(known).requires_grad_()
    loss, sums = objective.loss_and_sums(MODEL, packed_logits(ours, known, batch), batch)
    expected, figures = objective.loss_and_sums(MODEL, theirs * 1.0, batch_of_samples(known))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums, figures, rtol=1e-12, atol=1e-12)
    assert objective.count(batch) == objective.count(batch_of_samples(known))
    gradients = [torch.autograd.grad(one, at)[0] for one, at in ((loss, ours), (expected, theirs))]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_differences() -> None:
    known = samples(3)
    objective = policy_of(MINE[0], importance_cap=1.2)
    batch = batch_of_samples(known)
    logits_SNV = logits_of(known)
    ours = logits_SNV.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(objective, ours, batch), ours)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        along = torch.randn(logits_SNV.shape, generator=generator, dtype=torch.float64)
        up, down = (mean_loss(objective, logits_SNV + sign * 1e-6 * along, batch).item() for sign in (1, -1))
        assert (gradient * along).sum().item() == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_told", [True, False])
def test_the_policy_that_answered_has_a_ratio_of_one(dtype: torch.dtype, is_told: bool) -> None:
    """Exactly, with its log-probabilities of before and without; the divergence from itself is 0."""
    known = samples()
    logits_SNV, batch = logits_of(known).to(dtype), batch_of_samples(known)
    told_NS = token_figures(MODEL, logits_SNV, batch, 1.0).log_probabilities_BS
    signals = {"advantages": batch.signals["advantages"], "reference_log_probabilities": told_NS}
    signals |= {"old_log_probabilities": told_NS} if is_told else {}
    objective = policy_of(updating(K3))
    loss, sums = objective.loss_and_sums(MODEL, logits_SNV.clone(), replace(batch, signals=signals))
    found = objective.metrics(sums.tolist())
    assert (found["ratio"], found["kl"], found["kl_old"], found["kl_loss"]) == (1.0, 0.0, 0.0, 0.0)
    assert (found["clip_share"], found["rollout_gap"]) == (0.0, None)
    mean = signals["advantages"][known.learned_NS].mean().item()
    assert loss.item() / objective.count(batch) == pytest.approx(-mean, rel=1e-5)


def test_figures() -> None:
    known = samples(3)
    objective = policy_of(updating(K3, dual_clip=1.5))
    batch, logits_SNV = batch_of_samples(known), logits_of(known)
    loss, sums = objective.loss_and_sums(MODEL, logits_SNV.clone(), batch)
    assert len(sums) == objective.sum_count
    found = objective.metrics(sums.tolist())
    policy_NS, entropy_NS = by_torch(logits_SNV, known)
    learned_NS = known.learned_NS
    ratio = (policy_NS - known.old_NS)[learned_NS].exp()
    advantages = batch.signals["advantages"][learned_NS]
    high = ((ratio > 1.28) & (advantages > 0)).double().mean().item()
    low = ((ratio < 0.8) & (advantages < 0)).double().mean().item()
    dual = ((ratio > 1.5) & (advantages < 0)).double().mean().item()
    assert min(high, low, dual) > 0
    assert found["ratio"] == pytest.approx(ratio.mean().item())
    assert found["clip_high_share"] == pytest.approx(high)
    assert found["dual_clip_share"] == pytest.approx(dual)
    assert found["clip_share"] == pytest.approx(high + low + dual)
    assert found["entropy"] == pytest.approx(entropy_NS[learned_NS].mean().item())
    assert found["kl_old"] == pytest.approx((ratio - 1 - ratio.log()).mean().item())
    apart = (policy_NS - known.reference_NS)[learned_NS]
    assert found["kl"] == pytest.approx(((-apart).exp() - 1 + apart).mean().item())
    gap = (known.old_NS - known.rollout_NS)[learned_NS].abs().mean().item()
    assert found["rollout_gap"] == pytest.approx(gap)
    total = found["policy_loss"] + 0.1 * found["kl_loss"]  # pyright: ignore[reportOperatorIssue]
    assert total == pytest.approx(loss.item() / objective.count(batch))


def test_weights_and_the_steered_coefficient() -> None:
    """Each token's loss times its weight; the divergence by the coefficient of now."""
    known = samples(1)
    batch, logits_SNV = batch_of_samples(known), logits_of(known)
    objective = policy_of(updating(K3))
    plain = mean_loss(objective, logits_SNV, batch).item()
    objective.kl_coefficient = 0.0
    without = mean_loss(objective, logits_SNV, batch).item()
    objective.kl_coefficient = 0.3
    assert mean_loss(objective, logits_SNV, batch).item() == pytest.approx(without + 3 * (plain - without))
    objective = policy_of(updating(), importance_cap=1.2)
    weights_NS = known.values_NS.abs()
    weighted = replace(batch, signals={**batch.signals, "weights": weights_NS})
    scaled = {**batch.signals, "advantages": batch.signals["advantages"] * weights_NS}
    expected = mean_loss(objective, logits_SNV, replace(batch, signals=scaled))
    torch.testing.assert_close(mean_loss(objective, logits_SNV, weighted), expected)


@pytest.mark.parametrize("options", MINE[:3], ids=str)
def test_what_stands_where_nothing_is_learned_does_not_matter(options: dict[str, Any]) -> None:
    """Neither to the loss nor to its gradient."""
    known = samples(3)
    objective, batch = policy_of(options, importance_cap=1.2), batch_of_samples(known)
    nonsense = {
        name: torch.where(known.learned_NS, signal_NS, torch.nan) for name, signal_NS in batch.signals.items()
    }
    ours, theirs = logits_of(known).requires_grad_(), logits_of(known).requires_grad_()
    found = mean_loss(objective, ours, replace(batch, signals=nonsense))
    expected = mean_loss(objective, theirs, batch)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(one, at)[0] for one, at in ((found, ours), (expected, theirs))]
    assert torch.equal(*gradients)


def test_what_is_told_of_tokens() -> None:
    """0 where nothing is learned, though the label there may be impossible; float32 of bfloat16."""
    known = samples(1)
    batch, logits_SNV = batch_of_samples(known), logits_of(known)
    policy_NS, entropy_NS = by_torch(logits_SNV, known, 0.8)
    row = next(row for row in range(N) if not known.learned_NS[row, -1])
    logits_SNV[-1, row, batch.labels_BS[row, -1]] = -torch.inf
    found = token_figures(MODEL, logits_SNV.clone(), batch, 0.8)
    for one, expected in zip(found, (policy_NS, entropy_NS)):
        torch.testing.assert_close(one, torch.where(known.learned_NS, expected, 0.0))
    narrow = token_figures(MODEL, logits_SNV.bfloat16(), batch, 0.8)
    assert {one.dtype for one in narrow} == {torch.float32}
    logits_SNV.requires_grad_()
    loss = mean_loss(policy_of(MINE[0]), logits_SNV, batch)
    (gradient,) = torch.autograd.grad(loss, logits_SNV)
    assert loss.isfinite() and gradient.isfinite().all()


def test_rows_that_only_fill_count_nothing() -> None:
    batch = batch_of([empty_row(S), empty_row(S)])
    output = torch.randn(S, 2, VOCABULARY, requires_grad=True)
    objective = policy_of(updating(K3, normalisation="sequence"), importance_cap=2.0)
    loss, sums = objective.loss_and_sums(MODEL, output * 1.0, batch)
    assert objective.count(batch) == 0 and loss.item() == 0
    assert not sums.any() and len(sums) == objective.sum_count
    figures = objective.metrics(sums.tolist()).values()
    assert all(math.isfinite(value) for value in figures if isinstance(value, float))
    loss.backward()
    assert output.grad is not None and not output.grad.any()


@pytest.mark.parametrize("name", ["advantages", "reference_log_probabilities", "rollout_log_probabilities"])
def test_what_is_missing_is_told(name: str) -> None:
    known = samples()
    batch = batch_of_samples(known)
    rest = {key: value for key, value in batch.signals.items() if key != name}
    objective = policy_of(updating(K3), importance_cap=2.0)
    with pytest.raises(ValueError, match=f"no {name.replace('_', ' ')}"):
        objective.loss_sum(MODEL, logits_of(known), replace(batch, signals=rest))
