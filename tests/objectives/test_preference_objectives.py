"""Objectives of preferences over packed rows: beside the same answers one by one, and what they report.

Shapes: S tokens of a row, B rows, L documents of the fullest row, V vocabulary.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale.config.preferences import DpoSection, RewardSection
from llmscale.data.batch import Batch
from llmscale.data.row import Member, Row, batch_of, empty_row
from llmscale.objectives.calibration import calibration, calibration_sums
from llmscale.objectives.document_log_probabilities import document_log_probabilities
from llmscale.objectives.pairs import group_count, pair_places
from llmscale.objectives.prefer import Preference
from llmscale.objectives.prefer_unpaired import UnpairedPreference
from llmscale.objectives.reward import ComparedReward, OutcomeReward
from tests.objectives.logits_model import logits_model

VOCABULARY, LENGTH = 11, 24
PROMPT = 2
MODEL = logits_model(VOCABULARY)
"""What the objectives ask of a model."""


def row_of(answers: list[tuple[int, Member]], seed: int, learns_last: bool = False) -> Row:
    """Documents of a prompt and an answer of so many tokens; of the rest of the row is made padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [PROMPT + length for length, _ in answers]
    padding = LENGTH - sum(lengths)
    mask = [
        float(place >= PROMPT) if not learns_last else float(place == length - 1)
        for length in lengths
        for place in range(length)
    ]
    positions = [place for length in (*lengths, padding) for place in range(length)]
    return Row(
        tokens_S=torch.randint(VOCABULARY, (LENGTH,), generator=generator),
        labels_S=torch.randint(VOCABULARY, (LENGTH,), generator=generator),
        loss_mask_S=torch.tensor([*mask, *[0.0] * padding]),
        position_ids_S=torch.tensor(positions),
        document_lengths=(*lengths, *([padding] if padding else [])),
        padding=padding,
        members=tuple(member for _, member in answers),
    )


def batch_of_preferences(learns_last: bool = False) -> Batch:
    """A row of two pairs that fills it; one of a group of three answers; one that only fills."""
    first = [
        (3, Member(0, 0, reference=-7.0)),
        (4, Member(0, 1, 0.5, reference=-9.0)),
        (2, Member(1, 0, reference=-4.0)),
        (7, Member(1, 1, 0.25, reference=-18.0)),
    ]
    second = [
        (1, Member(0, 0, reference=-2.0)),
        (5, Member(0, 1, 1.0, reference=-12.0)),
        (3, Member(0, 2, 2.0, reference=-8.0)),
    ]
    rows = [row_of(first, 1, learns_last), row_of(second, 2, learns_last), empty_row(LENGTH)]
    batch = batch_of(rows)
    assert sum(length + PROMPT for length, _ in first) == LENGTH
    return batch


PAIRS = [((0, 0), (0, 1), 1.0), ((0, 2), (0, 3), 1.0), ((1, 0), (1, 1), 0.5), ((1, 0), (1, 2), 0.5)]
"""(row, document) of both sides of each pair, and how much the pair counts."""
PLACES = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]


def logits_of(seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LENGTH, 3, VOCABULARY, generator=generator, dtype=dtype)


def one_by_one(logits_SBV: Tensor, batch: Batch) -> dict[tuple[int, int], Tensor]:
    """Log-probability of each answer, by plain PyTorch."""
    assert batch.document_lengths is not None
    found: dict[tuple[int, int], Tensor] = {}
    for row, lengths in enumerate(batch.document_lengths):
        start = 0
        for document, length in enumerate(lengths):
            logits_SV = logits_SBV[start : start + length, row].log_softmax(-1)
            labels_S = batch.labels_BS[row, start : start + length]
            mask_S = batch.loss_mask_BS[row, start : start + length]
            found[row, document] = (logits_SV.gather(1, labels_S[:, None])[:, 0] * mask_S).sum()
            start += length
    return found


def test_log_probabilities_of_documents() -> None:
    batch, logits_SBV = batch_of_preferences(), logits_of()
    found = document_log_probabilities(MODEL, logits_SBV.clone(), batch)
    assert found.log_probabilities_BL.shape == (3, 4)
    assert found.learned_tokens_BL.tolist() == [[3, 4, 2, 7], [1, 5, 3, 0], [0, 0, 0, 0]]
    expected = one_by_one(logits_SBV, batch)
    for row, document in PLACES:
        assert found.log_probabilities_BL[row, document].item() == pytest.approx(
            expected[row, document].item(), rel=1e-12
        )
    assert not found.log_probabilities_BL[1, 3] and not found.log_probabilities_BL[2].any()


def test_what_padding_costs_does_not_matter() -> None:
    """A label of padding may be impossible."""
    batch, logits_SBV = batch_of_preferences(), logits_of()
    labels_S = batch.labels_BS[1]
    logits_SBV[-1, 1, labels_S[-1]] = -math.inf
    found = document_log_probabilities(MODEL, logits_SBV, batch)
    assert found.log_probabilities_BL.isfinite().all()


def test_float32_loses_nothing_over_long_answers() -> None:
    """A thousand equal tokens: the sum is exact to what one of them is."""
    logits_SBV = torch.zeros(1000, 1, VOCABULARY)
    nothing = torch.zeros(1, 1000, dtype=torch.int64)
    group = torch.zeros(1, 1, dtype=torch.int64)
    batch = Batch(nothing, nothing, torch.ones(1, 1000), nothing, group_BL=group, role_BL=group)
    found = document_log_probabilities(MODEL, logits_SBV, batch).log_probabilities_BL
    one = torch.tensor(float(VOCABULARY)).log().item()
    assert found.item() == pytest.approx(-1000 * one, rel=1e-7)


def test_pairs() -> None:
    batch = batch_of_preferences()
    places = pair_places(batch)
    numbers_BL = torch.arange(12).view(3, 4)
    chosen = [row * 4 + document for (row, document), _, _ in PAIRS]
    rejected = [row * 4 + document for _, (row, document), _ in PAIRS]
    assert places.chosen(numbers_BL).tolist() == chosen
    assert places.rejected(numbers_BL).tolist() == rejected
    assert places.weight_G.tolist() == [weight for _, _, weight in PAIRS]
    assert group_count(batch) == 3


def dpo_by_hand(logits_SBV: Tensor, batch: Batch, beta: float, sft_weight: float) -> Tensor:
    assert batch.reference_BL is not None
    policy = one_by_one(logits_SBV, batch)
    total = torch.zeros((), dtype=torch.float64)
    for chosen, rejected, weight in PAIRS:
        ratios = [policy[side] - batch.reference_BL[side] for side in (chosen, rejected)]
        tokens = batch.document_lengths[chosen[0]][chosen[1]] - PROMPT  # pyright: ignore[reportOptionalSubscript]
        sft = -policy[chosen] / tokens
        total = total + weight * (-F.logsigmoid(beta * (ratios[0] - ratios[1])) + sft_weight * sft)
    return total


def assert_same_gradient(ours: Tensor, theirs: Tensor) -> None:
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-10)
    assert ours.grad.abs().max() > 1e-3


@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_loss_and_gradient_of_packed_rows(sft_weight: float) -> None:
    batch = batch_of_preferences()
    ours, theirs = logits_of().requires_grad_(), logits_of().requires_grad_()
    objective = Preference(DpoSection(beta=0.2, sft_weight=sft_weight))
    loss = objective.loss_sum(MODEL, ours * 1.0, batch)  # backward overwrites the logits
    expected = dpo_by_hand(theirs, batch, 0.2, sft_weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert objective.count(batch) == 3
    loss.backward()
    expected.backward()
    assert_same_gradient(ours, theirs)


def test_figures_of_preferences() -> None:
    batch, logits_SBV = batch_of_preferences(), logits_of()
    assert batch.reference_BL is not None
    objective = Preference(DpoSection(beta=0.2, sft_weight=0.3))
    loss, sums = objective.loss_and_sums(MODEL, logits_SBV.clone(), batch)
    assert len(sums) == objective.sum_count
    found = objective.metrics(sums.tolist())
    policy = one_by_one(logits_SBV, batch)

    def mean(values: list[float]) -> float:
        return sum(value * weight for value, (_, _, weight) in zip(values, PAIRS)) / 3

    rewards = {place: 0.2 * (policy[place] - batch.reference_BL[place]).item() for place in PLACES}
    chosen = [rewards[one] for one, _, _ in PAIRS]
    rejected = [rewards[one] for _, one, _ in PAIRS]
    assert found["chosen_reward"] == pytest.approx(mean(chosen))
    assert found["rejected_reward"] == pytest.approx(mean(rejected))
    assert found["margin"] == pytest.approx(mean(chosen) - mean(rejected))
    assert found["accuracy"] == pytest.approx(mean([float(a > b) for a, b in zip(chosen, rejected)]))
    assert found["chosen_log_probability"] == pytest.approx(mean([policy[one].item() for one, _, _ in PAIRS]))
    assert found["rejected_log_probability"] == pytest.approx(
        mean([policy[one].item() for _, one, _ in PAIRS])
    )
    assert found["kl"] == pytest.approx(-(mean(chosen) + mean(rejected)) / 2 / 0.2)
    plain = Preference(DpoSection(beta=0.2)).loss_sum(MODEL, logits_SBV.clone(), batch)
    assert loss.item() / 3 == pytest.approx(plain.item() / 3 + 0.3 * found["sft_loss"])  # pyright: ignore[reportOperatorIssue]


def with_reference_of(logits_SBV: Tensor, batch: Batch) -> Batch:
    found = document_log_probabilities(MODEL, logits_SBV.clone(), batch)
    return replace(batch, reference_BL=found.log_probabilities_BL)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_begins_at_the_logarithm_of_two(dtype: torch.dtype) -> None:
    """Whatever the precision: the same tokens have the same log-probabilities."""
    logits_SBV = logits_of(dtype=dtype)
    batch = with_reference_of(logits_SBV, batch_of_preferences())
    objective = Preference(DpoSection())
    loss, sums = objective.loss_and_sums(MODEL, logits_SBV.clone(), batch)
    assert loss.item() / objective.count(batch) == pytest.approx(math.log(2), rel=1e-12)
    found = objective.metrics(sums.tolist())
    assert (found["kl"], found["margin"], found["accuracy"]) == (0.0, 0.0, 0.0)


def test_a_missing_reference_is_told() -> None:
    batch = replace(batch_of_preferences(), reference_BL=None)
    with pytest.raises(ValueError, match="reference model"):
        Preference(DpoSection()).loss_sum(MODEL, logits_of(), batch)
    loss = Preference(DpoSection(loss="simpo")).loss_sum(MODEL, logits_of(), batch)
    assert loss.isfinite()


@pytest.mark.parametrize(
    "objective",
    [
        Preference(DpoSection()),
        UnpairedPreference(DpoSection(loss="kto")),
        ComparedReward(RewardSection(margin=True)),
        OutcomeReward(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_rows_that_only_fill_count_nothing(objective: Any) -> None:
    batch = batch_of([empty_row(LENGTH), empty_row(LENGTH)])
    outputs = 1 if isinstance(objective, ComparedReward | OutcomeReward) else VOCABULARY
    output = torch.randn(LENGTH, 2, outputs, requires_grad=True)
    loss, sums = objective.loss_and_sums(MODEL, output * 1.0, batch)
    assert objective.count(batch) == 0 and loss.item() == 0
    assert sums.tolist() == [0.0] * objective.sum_count
    figures = objective.metrics(sums.tolist()).values()
    assert all(math.isfinite(value) for value in figures if isinstance(value, float))
    loss.backward()
    assert output.grad is not None and not output.grad.any()


def unpaired_batch() -> Batch:
    """Two answers, a good and a bad one, each with its mismatch."""
    answers = [
        (3, Member(0, 0, reference=-7.0)),
        (4, Member(0, 1, reference=-11.0)),
        (2, Member(1, 0, reference=-4.0)),
        (7, Member(1, 1, reference=-19.0)),
    ]
    row = replace(row_of(answers, 5), targets=(1.0, math.nan, 0.0, math.nan))
    return batch_of([row, empty_row(LENGTH), empty_row(LENGTH)])


def test_unpaired_answers() -> None:
    """The engine's part is played: first the sums of all, then the losses."""
    batch, logits_SBV = unpaired_batch(), logits_of()
    assert batch.reference_BL is not None
    ratios = {
        place: (one_by_one(logits_SBV, batch)[0, place] - batch.reference_BL[0, place]).item()
        for place in range(4)
    }
    objective = UnpairedPreference(DpoSection(loss="kto", beta=0.2, desirable_weight=1.5))
    ahead = objective.ahead(MODEL, logits_SBV.clone(), batch)
    assert ahead.tolist() == pytest.approx([ratios[1] + ratios[3], 2.0])
    objective.begin([8.0, 4.0])
    assert objective.kl == 2.0
    ours, theirs = logits_SBV.clone().requires_grad_(), logits_SBV.clone().requires_grad_()
    loss, sums = objective.loss_and_sums(MODEL, ours * 1.0, batch)
    good, bad = (1 / (1 + math.exp(-0.2 * gain)) for gain in (ratios[0] - 2.0, 2.0 - ratios[2]))
    assert loss.item() == pytest.approx(1.5 * (1 - good) + (1 - bad))
    assert objective.count(batch) == 2
    found = objective.metrics(sums.tolist())
    assert found["chosen_reward"] == pytest.approx(0.2 * ratios[0])
    assert found["rejected_reward"] == pytest.approx(0.2 * ratios[2])
    assert found["margin"] == pytest.approx(0.2 * (ratios[0] - ratios[2]))
    assert found["kl"] == pytest.approx(max(0.0, (ratios[1] + ratios[3]) / 2))
    assert found["accuracy"] == ((ratios[0] > 2.0) + (ratios[2] <= 2.0)) / 2
    answers = one_by_one(theirs, batch)
    gains = [
        sign * (answers[0, place] - batch.reference_BL[0, place] - 2.0) for place, sign in ((0, 1), (2, -1))
    ]
    (1.5 * torch.sigmoid(-0.2 * gains[0]) + torch.sigmoid(-0.2 * gains[1])).backward()
    loss.backward()
    assert_same_gradient(ours, theirs)


def test_unpaired_answers_of_one_kind_have_no_margin() -> None:
    batch = unpaired_batch()
    assert batch.targets_BL is not None
    only_good = replace(batch, targets_BL=batch.targets_BL.nan_to_num(1.0).clamp(min=1.0))
    objective = UnpairedPreference(DpoSection(loss="kto"))
    found = objective.metrics(objective.sums(MODEL, logits_of(), only_good).tolist())
    assert found["rejected_reward"] is None and found["margin"] is None
    assert isinstance(found["chosen_reward"], float)


def scores_of(batch: Batch) -> tuple[Tensor, dict[tuple[int, int], float]]:
    """Scores [S, B, 1], and those at the last token of each document."""
    generator = torch.Generator().manual_seed(7)
    scores_SBL = torch.randn(LENGTH, len(batch.tokens_BS), 1, generator=generator, dtype=torch.float64)
    assert batch.document_lengths is not None
    ends = {
        (row, document): sum(lengths[: document + 1]) - 1
        for row, lengths in enumerate(batch.document_lengths)
        for document in range(len(lengths))
    }
    return scores_SBL, {place: scores_SBL[end, place[0], 0].item() for place, end in ends.items()}


@pytest.mark.parametrize("margin", [False, True])
def test_compared_rewards(margin: bool) -> None:
    batch = batch_of_preferences(learns_last=True)
    scores_SBL, scores = scores_of(batch)
    objective = ComparedReward(RewardSection(margin=margin, label_smoothing=0.1))
    loss, sums = objective.loss_and_sums(MODEL, scores_SBL, batch)
    wanted = [0.5, 0.25, 1.0, 2.0] if margin else [0.0] * 4
    expected = 0.0
    for (chosen, rejected, weight), by in zip(PAIRS, wanted):
        share = 1 / (1 + math.exp(-(scores[chosen] - scores[rejected] - by)))
        expected -= weight * (0.9 * math.log(share) + 0.1 * math.log(1 - share))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert objective.count(batch) == 3 and len(sums) == objective.sum_count
    found = objective.metrics(sums.tolist())
    differences = [(scores[chosen] - scores[rejected], weight) for chosen, rejected, weight in PAIRS]
    assert found["margin"] == pytest.approx(sum(one * weight for one, weight in differences) / 3)
    assert found["accuracy"] == pytest.approx(sum((one > 0) * weight for one, weight in differences) / 3)
    assert 0.0 < found["accuracy"] < 1.0  # pyright: ignore[reportOperatorIssue]
    torch.autograd.gradcheck(
        lambda output: objective.loss_sum(MODEL, output, batch), scores_SBL.requires_grad_()
    )


def test_outcomes() -> None:
    """The best of each group is right; of one answer a label of its own says the contrary."""
    batch = batch_of_preferences(learns_last=True)
    targets_BL = torch.full((3, 1), math.nan)
    targets_BL[1, 0] = 0.0
    labelled = replace(batch, targets_BL=targets_BL)
    scores_SBL, scores = scores_of(batch)
    right = {(0, 0): 1, (0, 1): 0, (0, 2): 1, (0, 3): 0, (1, 0): 0, (1, 1): 0, (1, 2): 0}
    expected = 0.0
    for place, is_right in right.items():
        share = 1 / (1 + math.exp(-scores[place]))
        expected -= math.log(share if is_right else 1 - share) / (2 if place[0] == 0 else 3)
    objective = OutcomeReward()
    loss, sums = objective.loss_and_sums(MODEL, scores_SBL, labelled)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert objective.count(labelled) == 3 and len(sums) == objective.sum_count
    found = objective.metrics(sums.tolist())
    assert found["accuracy"] == pytest.approx(sum((scores[p] > 0) == bool(r) for p, r in right.items()) / 7)
    assert found["chosen_score"] == pytest.approx((scores[0, 0] + scores[0, 2]) / 2)
    torch.autograd.gradcheck(
        lambda output: objective.loss_sum(MODEL, output, labelled), scores_SBL.requires_grad_()
    )


def test_marks_that_are_not_one_a_document_are_refused() -> None:
    batch = batch_of_preferences(learns_last=False)
    with pytest.raises(ValueError, match="7 documents"):
        ComparedReward(RewardSection()).loss_sum(MODEL, torch.zeros(LENGTH, 3, 1), batch)


def test_calibration() -> None:
    """Of four that are sure to 73 % half are right; of one that is sure to 99 %, all."""
    logits = torch.tensor([1.0, 1.0, -1.0, -1.0, 5.0])
    is_true = torch.tensor([True, False, False, True, True])
    found = calibration(calibration_sums(logits, is_true, torch.ones(5, dtype=torch.float64)).tolist())
    sure, surer = (1 / (1 + math.exp(-logit)) for logit in (1.0, 5.0))
    assert found["calibration_error"] == pytest.approx(0.8 * (sure - 0.5) + 0.2 * (1 - surer))
    table = found["calibration"]
    assert isinstance(table, list) and len(table) == 2
    assert table[0] == pytest.approx({"count": 4, "share": 0.8, "confidence": sure, "accuracy": 0.5})
    assert table[1] == pytest.approx({"count": 1, "share": 0.2, "confidence": surer, "accuracy": 1.0})
