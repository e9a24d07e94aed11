"""Optimizer steps of the models that learn, on the experiences of one rollout."""

from collections.abc import Sequence
from statistics import mean

from llmscale.config.rlhf import UpdateSection
from llmscale.parallel.rng import derived_seed
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.families import costs
from llmscale.rlhf.learning import minibatches
from llmscale.rlhf.models import Models

Figures = dict[str, float]


def update_models(
    models: Models,
    experiences: Sequence[Experience],
    update: UpdateSection,
    kl_coefficient: float,
    seed: int,
) -> Figures:
    """All optimizer steps on these experiences: means of their figures, and the first one's ratio to the
    policy that answered.

    Args:
        kl_coefficient: weight of a divergence in the loss.
        seed: of the step.

    Raises:
        WorkerLost, WorkerFailed: see `Calls.results`.
    """
    found: list[Figures] = []
    for epoch in range(update.epochs):
        for places in minibatches(len(experiences), update.minibatches, derived_seed(seed, epoch)):
            found.append(_step(models, [experiences[place] for place in places], kl_coefficient))
    names = dict.fromkeys(name for one in found for name in one)
    means = {name: mean(one[name] for one in found if name in one) for name in names}
    of_first = {"first_ratio": "ratio", "first_kl_old": "kl_old"}
    return means | {ours: found[0][name] for ours, name in of_first.items() if name in found[0]}


def _step(models: Models, experiences: Sequence[Experience], kl_coefficient: float) -> Figures:
    """Actor and critic, at the same time where they live apart."""
    tokens, critic = costs(experiences), models.critic
    pending = critic.give("update", experiences, costs=tokens) if critic is not None else None
    learned = models.actor.give("learn", experiences, kl_coefficient, costs=tokens)
    figures: Figures = learned.results()[0]
    if pending is None:
        return figures
    of_critic: Figures = pending.results()[0]
    return figures | {f"critic_{name}": value for name, value in of_critic.items()}
