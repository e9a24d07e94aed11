"""Losses of preferences: as the papers write them, with PyTorch's gradients, and beside TRL's code.

Shapes: G pairs.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from llmscale.config.preferences import OF_DPO_LOSS, DpoSection
from llmscale.objectives.bradley_terry import bradley_terry
from llmscale.objectives.outcome import outcome
from llmscale.objectives.preference.kto import divergence, kto
from llmscale.objectives.preference.pair import PairLogProbabilities
from llmscale.objectives.preference.table import LOSSES_OF_PAIRS, first_loss, losses_of_pairs

PAIRS = 6
BETA, EPSILON, GAMMA = 0.3, 0.2, 0.7


def pairs_of(seed: int = 0) -> PairLogProbabilities:
    generator = torch.Generator().manual_seed(seed)

    def tokens() -> Tensor:
        return torch.randint(2, 9, (PAIRS,), generator=generator).double()

    def log_probabilities() -> Tensor:
        return -12 * torch.rand(PAIRS, generator=generator, dtype=torch.float64) - 0.4

    return PairLogProbabilities(
        policy_chosen_G=log_probabilities(),
        policy_rejected_G=log_probabilities(),
        reference_chosen_G=log_probabilities(),
        reference_rejected_G=log_probabilities(),
        chosen_tokens_G=tokens(),
        rejected_tokens_G=tokens(),
    )


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


Formula = Callable[[float, float, float, float, float, float], float]
"""(π(chosen), π(rejected), π_ref(chosen), π_ref(rejected), |chosen|, |rejected|) → loss of the pair, where
the first four are probabilities, not their logarithms."""


def of_ratios(loss: Callable[[float], float], is_normalised: bool = False) -> Formula:
    """A function of DPO's Δ."""

    def formula(pw: float, pl: float, rw: float, rl: float, nw: float, nl: float) -> float:
        powers = (1 / nw, 1 / nl) if is_normalised else (1, 1)
        return loss(math.log((pw / rw) ** powers[0]) - math.log((pl / rl) ** powers[1]))

    return formula


def of_simpo(pw: float, pl: float, _rw: float, _rl: float, nw: float, nl: float) -> float:
    return -math.log(sigma(BETA / nw * math.log(pw) - BETA / nl * math.log(pl) - GAMMA))


def of_orpo(pw: float, pl: float, _rw: float, _rl: float, nw: float, nl: float) -> float:
    mean_w, mean_l = pw ** (1 / nw), pl ** (1 / nl)
    ratio = (mean_w / (1 - mean_w)) / (mean_l / (1 - mean_l))
    return -math.log(mean_w) - BETA * math.log(sigma(math.log(ratio)))


def dpo(delta: float) -> float:
    return -math.log(sigma(BETA * delta))


def conservative(delta: float) -> float:
    return -(1 - EPSILON) * math.log(sigma(BETA * delta)) - EPSILON * math.log(sigma(-BETA * delta))


def unbiased(delta: float) -> float:
    return ((1 - EPSILON) * dpo(delta) - EPSILON * dpo(-delta)) / (1 - 2 * EPSILON)


PAPERS: dict[str, tuple[dict[str, Any], Formula]] = {
    "sigmoid": ({"loss": "sigmoid"}, of_ratios(dpo)),
    "sigmoid, smoothed": ({"loss": "sigmoid", "label_smoothing": EPSILON}, of_ratios(conservative)),
    "sigmoid, normalised": ({"loss": "sigmoid", "length_normalised": True}, of_ratios(dpo, True)),
    "robust": ({"loss": "robust", "label_smoothing": EPSILON}, of_ratios(unbiased)),
    "ipo": ({"loss": "ipo"}, of_ratios(lambda delta: (delta - 1 / (2 * BETA)) ** 2)),
    "ipo, normalised": (
        {"loss": "ipo", "length_normalised": True},
        of_ratios(lambda delta: (delta - 1 / (2 * BETA)) ** 2, True),
    ),
    "hinge": ({"loss": "hinge"}, of_ratios(lambda delta: max(0.0, 1 - BETA * delta))),
    "simpo": ({"loss": "simpo", "target_margin": GAMMA}, of_simpo),
    "orpo": ({"loss": "orpo"}, of_orpo),
}


def options_of(name: str) -> DpoSection:
    return DpoSection.model_validate({"beta": BETA, **PAPERS[name][0]})


def rows_of(pairs: PairLogProbabilities) -> list[list[float]]:
    columns = list(vars(pairs).values())
    return torch.stack([column.exp() for column in columns[:4]] + columns[4:]).T.tolist()


@pytest.mark.parametrize("name", PAPERS)
def test_is_the_formula_of_the_paper(name: str) -> None:
    pairs = pairs_of()
    expected = torch.tensor([PAPERS[name][1](*row) for row in rows_of(pairs)], dtype=torch.float64)
    found = losses_of_pairs(pairs, options_of(name))
    torch.testing.assert_close(found.loss_G, expected, atol=1e-12, rtol=1e-10)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("name", PAPERS)
def test_gradient(name: str) -> None:
    pairs = pairs_of()

    def loss(chosen_G: Tensor, rejected_G: Tensor) -> Tensor:
        given = replace(pairs, policy_chosen_G=chosen_G, policy_rejected_G=rejected_G)
        return losses_of_pairs(given, options_of(name)).loss_G

    sides = [side.clone().requires_grad_() for side in (pairs.policy_chosen_G, pairs.policy_rejected_G)]
    torch.autograd.gradcheck(loss, sides)
    found = losses_of_pairs(
        replace(pairs, policy_chosen_G=sides[0], policy_rejected_G=sides[1]), options_of(name)
    )
    assert found.loss_G.requires_grad
    assert not found.chosen_rewards_G.requires_grad and not found.rejected_rewards_G.requires_grad


def test_every_loss_is_here() -> None:
    assert {*LOSSES_OF_PAIRS, "kto"} == set(OF_DPO_LOSS)
    assert {options_of(name).loss for name in PAPERS} == set(LOSSES_OF_PAIRS)


@pytest.mark.parametrize("loss", LOSSES_OF_PAIRS)
def test_reads_what_the_config_says_it_does(loss: str) -> None:
    """Each option changes the loss, or the config refuses it."""
    pairs, plain = pairs_of(), DpoSection.model_validate({"loss": loss})
    before_G = losses_of_pairs(pairs, plain).loss_G
    for key, value in (
        ("beta", 0.5),
        ("label_smoothing", 0.3),
        ("length_normalised", True),
        ("target_margin", 1.5),
    ):
        if loss in ("simpo", "orpo") and key == "length_normalised":
            continue  # refused; their means are not divided twice
        changed_G = losses_of_pairs(pairs, plain.model_copy(update={key: value})).loss_G
        assert bool((changed_G != before_G).any()) == (key in OF_DPO_LOSS[loss]), key


FIRST = {
    "sigmoid": math.log(2),
    "robust": math.log(2),
    "ipo": 1 / (4 * BETA**2),
    "hinge": 1.0,
    "simpo": None,
    "orpo": None,
    "kto": 0.5,
}


@pytest.mark.parametrize("loss", FIRST)
@pytest.mark.parametrize("label_smoothing", [0.0, EPSILON])
def test_loss_of_the_reference_itself(loss: str, label_smoothing: float) -> None:
    tree = {"loss": loss, "beta": BETA, "label_smoothing": label_smoothing}
    expected = FIRST[loss]
    found = first_loss(DpoSection.model_validate(tree))
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_first_loss_of_weighted_answers_is_not_known_beforehand() -> None:
    weighted = DpoSection(loss="kto", desirable_weight=1.5)
    assert first_loss(weighted) is None
    assert first_loss(weighted.model_copy(update={"undesirable_weight": 1.5})) == 0.75


def test_a_certain_answer_has_finite_odds() -> None:
    """Where float32 gives a probability of 1."""
    certain = torch.zeros(1, requires_grad=True)
    other, tokens = torch.tensor([-2.0]), torch.ones(1)
    pairs = PairLogProbabilities(certain, other, certain, other, tokens, tokens)
    loss_G = losses_of_pairs(pairs, DpoSection(loss="orpo")).loss_G
    [gradient] = torch.autograd.grad(loss_G.sum(), certain)
    assert loss_G.isfinite().all() and gradient.isfinite().all()


def answers_of(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy_G, reference_G = -5 * torch.rand(2, PAIRS, generator=generator, dtype=torch.float64)
    return policy_G, reference_G, torch.tensor([True, False, True, True, False, False])


@pytest.mark.parametrize("kl", [0.0, 0.4])
def test_kto_is_the_formula_of_the_paper(kl: float) -> None:
    policy_G, reference_G, is_good_G = answers_of()
    found = kto(policy_G, reference_G, is_good_G, kl, BETA, 1.5, 0.5)
    for at in range(PAIRS):
        reward = math.log(math.exp(policy_G[at].item()) / math.exp(reference_G[at].item()))
        value = 1.5 * sigma(BETA * (reward - kl)) if is_good_G[at] else 0.5 * sigma(BETA * (kl - reward))
        assert found.loss_G[at].item() == pytest.approx((1.5 if is_good_G[at] else 0.5) - value, rel=1e-12)
        assert found.rewards_G[at].item() == pytest.approx(BETA * reward, rel=1e-12)


def test_gradient_of_kto() -> None:
    policy_G, reference_G, is_good_G = answers_of()
    torch.autograd.gradcheck(
        lambda given_G: kto(given_G, reference_G, is_good_G, 0.4, BETA, 1.5, 0.5).loss_G,
        policy_G.requires_grad_(),
    )


def test_kto_of_the_reference_itself() -> None:
    policy_G, _, is_good_G = answers_of()
    found = kto(policy_G, policy_G, is_good_G, divergence([0.0, 4.0]), BETA, 1.5, 0.5)
    assert found.loss_G.tolist() == [0.75 if good else 0.25 for good in is_good_G]


def test_divergence_is_never_below_zero() -> None:
    assert divergence([6.0, 4.0]) == 1.5
    assert divergence([-6.0, 4.0]) == 0.0
    assert divergence([0.0, 0.0]) == 0.0


def test_comparison_is_the_formula_of_the_paper() -> None:
    chosen_G, rejected_G, margin_G = torch.randn(3, PAIRS, dtype=torch.float64).unbind()
    found_G = bradley_terry(chosen_G, rejected_G, margin_G, EPSILON)
    for at in range(PAIRS):
        odds = math.exp(chosen_G[at].item() - rejected_G[at].item() - margin_G[at].item())
        right = odds / (1 + odds)
        expected = -(1 - EPSILON) * math.log(right) - EPSILON * math.log(1 - right)
        assert found_G[at].item() == pytest.approx(expected, rel=1e-10)
    same = bradley_terry(chosen_G, chosen_G, 0.0, EPSILON)
    torch.testing.assert_close(same, torch.full_like(same, math.log(2)))


def test_gradient_of_comparisons_and_outcomes() -> None:
    chosen_G, rejected_G = torch.randn(2, PAIRS, dtype=torch.float64, requires_grad=True).unbind()
    torch.autograd.gradcheck(
        lambda chosen_G, rejected_G: bradley_terry(chosen_G, rejected_G, 0.3, EPSILON), (chosen_G, rejected_G)
    )
    is_right_G = torch.arange(PAIRS) % 2 == 0
    torch.autograd.gradcheck(lambda scores: outcome(scores, is_right_G), chosen_G)


def test_outcome_is_the_likelihood_of_the_labels() -> None:
    scores, labels = [0.5, -1.5, 3.0], [True, True, False]
    found = outcome(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels))
    expected = [
        -math.log(sigma(score) if label else 1 - sigma(score)) for score, label in zip(scores, labels)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


class Counts:
    """What TRL asks of accelerate, in one process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, value: Tensor) -> Tensor:
        return value

    gather = gather_for_metrics


def trl_model(log_probabilities: Tensor, mask: Tensor) -> Callable[..., Any]:
    """Says, token by token, what adds up to these sums; the mask's first column is no label."""
    per_token = (log_probabilities / mask[:, 1:].sum(1))[:, None] * mask[:, 1:]
    nothing = torch.zeros_like(per_token)
    answer = SimpleNamespace(
        log_probs=per_token, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    return lambda **_: answer


def masks_of(tokens: Tensor) -> Tensor:
    """One token of prompt, then the answers'."""
    places = torch.arange(int(tokens.max()) + 1)
    return ((places >= 1) & (places <= tokens[:, None])).long()


def trl_options(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Counts(),
        aux_loss_enabled=False,
        beta=BETA,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("sigmoid", "sigmoid"),
        ("sigmoid, normalised", "sigmoid_norm"),
        ("robust", "robust"),
        ("ipo, normalised", "ipo"),
        ("hinge", "hinge"),
    ],
)
def test_is_the_loss_of_trl(name: str, theirs: str) -> None:
    pairs = pairs_of()
    found = losses_of_pairs(pairs, options_of(name))
    mask = masks_of(torch.cat((pairs.chosen_tokens_G, pairs.rejected_tokens_G)))
    trainer = trl_options(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[theirs],
        loss_weights=[1.0],
        label_smoothing=options_of(name).label_smoothing,
        use_weighting=False,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": pairs.reference_chosen_G,
        "ref_rejected_logps": pairs.reference_rejected_G,
    }
    model = trl_model(torch.cat((pairs.policy_chosen_G, pairs.policy_rejected_G)), mask)
    loss: Any = DPOTrainer._compute_loss(trainer, model, inputs, False)  # pyright: ignore[reportArgumentType]
    assert found.loss_G.mean().item() == pytest.approx(loss.item(), rel=1e-12)
    if "normalised" not in name:  # theirs are then of another scale than their loss
        metrics = trainer._metrics["train"]
        assert found.chosen_rewards_G.mean().item() == pytest.approx(metrics["rewards/chosen"][0])
        assert found.rejected_rewards_G.mean().item() == pytest.approx(metrics["rewards/rejected"][0])


def test_simpo_is_that_of_trl() -> None:
    pairs = pairs_of()
    mean = pairs.per_token
    trainer: Any = SimpleNamespace(
        alpha=0.0, beta=BETA, simpo_gamma=GAMMA, label_smoothing=0.0, loss_type="simpo", accelerator=Counts()
    )
    expected = CPOTrainer.cpo_loss(trainer, mean.policy_chosen_G, mean.policy_rejected_G)  # pyright: ignore[reportArgumentType]
    for ours, theirs in zip(losses_of_pairs(pairs, options_of("simpo")), expected):
        torch.testing.assert_close(ours, theirs)


def test_the_odds_ratio_is_that_of_trl() -> None:
    """They add the cross-entropy elsewhere, and work in float32."""
    pairs = pairs_of()
    mean = pairs.per_token
    trainer: Any = SimpleNamespace(beta=BETA, accelerator=Counts())
    weighted_G, *rewards, _, _ = ORPOTrainer.odds_ratio_loss(
        trainer,
        mean.policy_chosen_G,  # pyright: ignore[reportArgumentType]
        mean.policy_rejected_G,  # pyright: ignore[reportArgumentType]
    )
    found = losses_of_pairs(pairs, options_of("orpo"))
    torch.testing.assert_close(
        found.loss_G + mean.policy_chosen_G, -weighted_G.double(), atol=1e-6, rtol=1e-6
    )
    for ours, theirs in zip(found[1:], rewards):
        torch.testing.assert_close(ours, theirs.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_kto_is_that_of_trl(shift: float) -> None:
    """Also where the estimate of the divergence is below 0, and counts as 0."""
    policy_G, reference_G, is_good_G = answers_of()
    mismatched_G = reference_G + shift * torch.linspace(0.5, 1.5, PAIRS, dtype=torch.float64)
    mask = masks_of(torch.full((PAIRS,), 3))
    trainer = trl_options(
        _compute_kl_logps=lambda *_: mismatched_G,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": is_good_G,
        "ref_logps": reference_G,
        "ref_KL_logps": reference_G,
    }
    loss: Any = KTOTrainer._compute_loss(trainer, trl_model(policy_G, mask), inputs, False)  # pyright: ignore[reportArgumentType]
    kl = divergence([(mismatched_G - reference_G).sum().item(), PAIRS])
    assert trainer._metrics["train"]["kl"] == pytest.approx([kl])
    found = kto(policy_G, reference_G, is_good_G, kl, BETA, 1.5, 0.5)
    assert found.loss_G.mean().item() == pytest.approx(loss.item(), rel=1e-12)
