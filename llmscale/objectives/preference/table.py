"""Which function a loss of pairs is, and what it reads of the options (`dpo.*`)."""

from collections.abc import Callable

import torch

from llmscale.config.preferences import DpoSection
from llmscale.objectives.preference.hinge import hinge
from llmscale.objectives.preference.ipo import ipo
from llmscale.objectives.preference.kto import kto
from llmscale.objectives.preference.orpo import orpo
from llmscale.objectives.preference.pair import PairLogProbabilities, PairLosses
from llmscale.objectives.preference.robust import robust
from llmscale.objectives.preference.sigmoid import sigmoid
from llmscale.objectives.preference.simpo import simpo

LOSSES_OF_PAIRS: dict[str, Callable[[PairLogProbabilities, DpoSection], PairLosses]] = {
    "sigmoid": lambda pairs, options: sigmoid(pairs, options.beta, options.label_smoothing),
    "ipo": lambda pairs, options: ipo(pairs, options.beta),
    "hinge": lambda pairs, options: hinge(pairs, options.beta),
    "robust": lambda pairs, options: robust(pairs, options.beta, options.label_smoothing),
    "simpo": lambda pairs, options: simpo(pairs, options.beta, options.target_margin),
    "orpo": lambda pairs, options: orpo(pairs, options.beta),
}
"""All but kto, which is not of pairs."""


def losses_of_pairs(pairs: PairLogProbabilities, options: DpoSection) -> PairLosses:
    """By `options.loss`, of normalised lengths where the options say so."""
    return LOSSES_OF_PAIRS[options.loss](pairs.per_token if options.length_normalised else pairs, options)


def first_loss(options: DpoSection) -> float | None:
    """The loss of a policy that is its reference, less the term of fine-tuning. None where there is no
    reference, or where it depends on the answers: of kto, whose two kinds have weights of their own."""
    if not options.has_reference:
        return None
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    if options.loss in LOSSES_OF_PAIRS:
        return losses_of_pairs(PairLogProbabilities(zero, zero, zero, zero, one, one), options).loss_G.item()
    weights = options.desirable_weight, options.undesirable_weight
    good, bad = (
        kto(zero, zero, is_good, 0.0, options.beta, *weights).loss_G for is_good in (one > 0, zero > 0)
    )
    return good.item() if torch.equal(good, bad) else None
