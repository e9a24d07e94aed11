"""Which function a loss of pairs is, and what it reads of the options (`dpo.*`)."""

from collections.abc import Callable

import torch

from llmscale.config.preferences import DpoSection
from llmscale.objectives.preference.hinge import hinge
from llmscale.objectives.preference.ipo import ipo
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
    """The loss of a policy that is its reference, the same of all pairs, less the term of fine-tuning. None
    where it is not known beforehand: there is no reference, or (kto) it depends on the answers' labels."""
    if not options.has_reference or options.loss not in LOSSES_OF_PAIRS:
        return None
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return losses_of_pairs(PairLogProbabilities(zero, zero, zero, zero, one, one), options).loss_G.item()
