"""Rules of reinforcement learning over several keys; `llmscale.config.checks` asks them."""

from collections.abc import Iterator

from llmscale.config.problems import Problem
from llmscale.config.rlhf import OF_ALGORITHM, WITHOUT_KL, RlhfSection
from llmscale.config.rlhf_environment import NAME as ENVIRONMENT
from llmscale.config.rlhf_environment import environment_problems
from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config


def keys_of_algorithm(config: Config) -> Iterator[Problem]:
    """A key that the algorithm does not read was meant for another one."""
    rlhf = config.rlhf
    for key, field in type(rlhf.update).model_fields.items():
        value = getattr(rlhf.update, key)
        if key in OF_ALGORITHM[rlhf.algorithm] or value == field.default:
            continue
        reading = ", ".join(name for name, keys in OF_ALGORITHM.items() if key in keys)
        message = f"is not read by rlhf.algorithm = {rlhf.algorithm}, but by {reading}; leave it out"
        yield Problem(f"rlhf.update.{key}", value, message)
    yield from _keys_of_kl(rlhf)


def _keys_of_kl(rlhf: RlhfSection) -> Iterator[Problem]:
    if rlhf.algorithm not in WITHOUT_KL:
        return
    for key, field in type(rlhf.kl).model_fields.items():
        value = getattr(rlhf.kl, key)
        if value != field.default:
            message = f"is not read by rlhf.algorithm = {rlhf.algorithm}, which asks no reference; drop it"
            yield Problem(f"rlhf.kl.{key}", value, message)


def divergence_has_a_gradient(config: Config) -> Iterator[Problem]:
    kl = config.rlhf.kl
    if kl.penalty == "loss" and kl.estimator_or_default == "k1" and not kl.weighted:
        message = (
            "has a gradient in the loss whose mean is 0, whatever the divergence; take k2, set "
            "rlhf.kl.weighted=true, or rlhf.kl.penalty=reward"
        )
        yield Problem("rlhf.kl.estimator", "k1", message)
    if kl.weighted and kl.penalty == "reward":
        yield Problem("rlhf.kl.weighted", True, "is of rlhf.kl.penalty=loss; a reward has no gradient")
    if kl.target is not None and not kl.coefficient:
        message = "is 0 and would stay so: it is steered by factors; set where it begins, or leave out target"
        yield Problem("rlhf.kl.coefficient", kl.coefficient, message)
    if kl.target is None and kl.horizon != type(kl).model_fields["horizon"].default:
        yield Problem("rlhf.kl.horizon", kl.horizon, "is read with rlhf.kl.target only; set that, too")


def bounds_leave_room(config: Config) -> Iterator[Problem]:
    update = config.rlhf.update
    highest = 1 + update.clip_high_or_default
    if update.dual_clip is not None and update.dual_clip <= highest:
        message = f"must be above 1 + clip_high = {highest:g}: below it everything would be clipped"
        yield Problem("rlhf.update.dual_clip", update.dual_clip, message)
    buffer, longest = config.rlhf.overlong.buffer, config.rlhf.longest_answer
    if buffer > longest:
        message = f"is more than the longest answer, of {longest} tokens (rlhf.rollout.max_new_tokens)"
        yield Problem("rlhf.overlong.buffer", buffer, message)


def environment_can_be_used(config: Config) -> Iterator[Problem]:
    section = config.rlhf.environment
    if section is not None:
        yield from environment_problems(section)


def metrics_have_one_meaning(config: Config) -> Iterator[Problem]:
    """`reward_NAME` is also what is told of all rewards together."""
    taken = {"mean", "std", "best", *([ENVIRONMENT] if config.rlhf.environment else [])}
    for place, reward in enumerate(config.rlhf.rewards):
        name = reward.name_or_default
        if name in taken:
            yield Problem(
                f"rlhf.rewards.{place}.name", name, f"is what metrics call another number: reward_{name}"
            )


def answers_are_written_ahead(config: Config) -> Iterator[Problem]:
    rlhf = config.rlhf
    if not rlhf.async_steps:
        return
    if not rlhf.learns:
        message = "writes answers while the model learns, and best_of_n learns nothing; take 0"
        yield Problem("rlhf.async_steps", rlhf.async_steps, message)
    elif not rlhf.takes_the_best and rlhf.rollout.importance_cap is None:
        message = "is what makes up for answers of the weights before (rlhf.async_steps=1); set it, such as 2"
        yield Problem("rlhf.rollout.importance_cap", None, message)
    for name, pool in pools_of(config).items():
        learning = [role for role in pool.roles if role in ("actor", "critic")]
        if "rollout" in pool.roles and learning:
            message = (
                f"has the rollout and the {' and the '.join(learning)} in the pool {name}, whose roles take "
                "turns: nothing would be written while they learn; give the rollout a pool of its own"
            )
            yield Problem("rlhf.pools", ", ".join(pools_of(config)), message)


RULES = (
    keys_of_algorithm,
    divergence_has_a_gradient,
    bounds_leave_room,
    environment_can_be_used,
    metrics_have_one_meaning,
    answers_are_written_ahead,
)
