"""What the models say of the answers, before anything is learned of them."""

from collections.abc import Sequence
from typing import Any

from llmscale.config.rlhf import RlhfSection
from llmscale.objectives.rl.signals import OLD, REFERENCE, VALUES
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.families import costs
from llmscale.rlhf.models import Models


def knowing(experiences: Sequence[Experience], models: Models, options: RlhfSection) -> list[Experience]:
    """The experiences with all that the algorithm asks of; models of different pools are asked at the same
    time.

    Raises:
        WorkerLost, WorkerFailed: see `Calls.results`.
    """
    found, tokens = list(experiences), costs(experiences)
    pending: dict[str, Any] = {}
    if _needs_old(options):
        pending[OLD] = models.actor.submit("log_probabilities", found, costs=tokens)
    if options.has_kl:
        teller, method = models.reference or models.actor, "reference_log_probabilities"
        pending[REFERENCE] = teller.submit(method, found, costs=tokens)
    if models.critic is not None:
        pending[VALUES] = models.critic.submit("values", found, costs=tokens)
    for name, calls in pending.items():
        told = calls.results()
        found = [one.knowing(**{name: values}) for one, values in zip(found, told, strict=True)]
    return found


def _needs_old(options: RlhfSection) -> bool:
    """The first of several steps on a rollout, and rewards that a divergence is taken from, need the
    log-probabilities from before; else the actor's own while it learns are those."""
    update = options.update
    return not options.takes_the_best and (update.epochs * update.minibatches > 1 or options.has_kl)
