"""Sections of preference training: how records are read, reward models, and DPO with its family."""

from typing import Annotated, Literal

from pydantic import Field

from llmscale.config.section import NonNegativeFloat, PositiveFloat, Section

Smoothing = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]


class PreferencesSection(Section):
    """How answers that were compared become tokens (`task: reward`, `task: dpo`)."""

    chat_template: str | None = None
    """One of ours (`plain`, `chatml`, `llama3`, `zephyr`) or a `.jinja` file. Left out: the tokenizer's own,
    `plain` where it has none."""
    too_long: Literal["truncate", "drop"] = "truncate"
    """Where the answers to a prompt, each with the prompt before it, have more than `train.sequence_length`
    tokens together: the prompt loses its oldest turns, or the record is left out."""
    packing: bool = True
    """The answers to as many prompts a row as fit; else those to one: `train.global_batch_size` counts
    prompts."""


class RewardSection(Section):
    """What a reward model learns (`task: reward`)."""

    @classmethod
    def shorthand(cls) -> str:
        return "loss"

    loss: Literal["bradley_terry", "outcome"] = "bradley_terry"
    """Which answer is better (arXiv:1706.03741), or whether an answer is right (arXiv:2110.14168)."""
    label_smoothing: Smoothing = 0.0
    """Share of the comparisons that are taken to be the wrong way round (bradley_terry)."""
    margin: bool = False
    """Each record says in its field `margin` by how much the better answer is better, and the reward must
    differ by that much more (arXiv:2307.09288; bradley_terry)."""


DpoLoss = Literal["sigmoid", "ipo", "hinge", "robust", "simpo", "orpo", "kto"]


class DpoSection(Section):
    """What a model learns from preferences without a reward model (`task: dpo`)."""

    @classmethod
    def shorthand(cls) -> str:
        return "loss"

    loss: DpoLoss = "sigmoid"
    """DPO (sigmoid; arXiv:2305.18290), IPO (arXiv:2310.12036), SLiC's hinge (arXiv:2305.10425), robust DPO
    (arXiv:2403.00409), SimPO (arXiv:2405.14734), ORPO (arXiv:2403.07691), KTO (arXiv:2402.01306)."""
    beta: PositiveFloat = 0.1
    """How closely the model is held to the reference; of orpo the weight of the odds ratio."""
    label_smoothing: Smoothing = 0.0
    """Share of the comparisons that are taken to be the wrong way round (sigmoid: conservative DPO;
    robust)."""
    reference: Literal["precomputed", "held", "adapter"] = "precomputed"
    """Where the start's log-probabilities come from: computed once before training and kept on disk, a second
    model beside the trained one, or the trained one with its adapter off (all but simpo and orpo)."""
    length_normalised: bool = False
    """Log-probabilities a token, not of a whole answer (sigmoid, ipo, hinge, robust; simpo and orpo always do
    that)."""
    sft_weight: NonNegativeFloat = 0.0
    """Of the cross-entropy of the chosen answers, which is added (sigmoid, ipo, hinge, robust, simpo)."""
    target_margin: NonNegativeFloat = 0.5
    """By how much the reward of the chosen answer should be higher, the paper's gamma (simpo)."""
    desirable_weight: PositiveFloat = 1.0
    """Of the answers with label true (kto)."""
    undesirable_weight: PositiveFloat = 1.0
    """Of the answers with label false (kto)."""

    @property
    def has_reference(self) -> bool:
        return "reference" in OF_DPO_LOSS[self.loss]


_COMPARED = ("beta", "reference", "length_normalised", "sft_weight")

OF_DPO_LOSS: dict[str, tuple[str, ...]] = {
    "sigmoid": (*_COMPARED, "label_smoothing"),
    "ipo": _COMPARED,
    "hinge": _COMPARED,
    "robust": (*_COMPARED, "label_smoothing"),
    "simpo": ("beta", "sft_weight", "target_margin"),
    "orpo": ("beta",),
    "kto": ("beta", "reference", "desirable_weight", "undesirable_weight"),
}
OF_REWARD_LOSS: dict[str, tuple[str, ...]] = {
    "bradley_terry": ("label_smoothing", "margin"),
    "outcome": (),
}
"""Keys that each loss reads."""
