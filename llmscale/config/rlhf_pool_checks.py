"""Rules about which model lives where (`rlhf.pools`, `rlhf.roles`) and who writes answers."""

from collections.abc import Iterator

from llmscale.config import layout_checks
from llmscale.config.problems import Problem
from llmscale.config.rlhf_pools import LEARNING, Role
from llmscale.config.rlhf_rewards import reward_problems
from llmscale.config.rlhf_roles import needed_roles, pool_of, pools_of, role_config
from llmscale.config.schema import Config
from llmscale.config.tuning import NOT_WEIGHTS

UNREAD: dict[str, str] = {
    "train.global_batch_size": "rlhf.rollout.prompts × rlhf.rollout.answers is what a step learns from",
    "train.batch_warmup": "rlhf.rollout.prompts is the same in every step",
    "train.epochs": "set train.steps",
    "train.validation_batches": "rlhf.validation.prompts says how many are answered",
    "train.early_stopping": "set train.stop_at",
    "train.generate": "the answers of each validation are kept as they are",
    "train.profile": "the report draws how long the parts of its steps take; task=sft can profile the model",
    "data.replay": "only task=sft can learn from it",
    "data.forgetting": "the divergence from the reference tells how far a model has gone",
    "sft.chat_template": "set rlhf.chat_template",
    "checkpoint.keep_best": "set checkpoint.keep_every, and choose by reward_mean of the validations",
    "parallel": "each model has its own in rlhf.roles.ROLE.parallel",
    "zero": "each model has its own in rlhf.roles.ROLE.zero_stage",
}
"""Keys of other tasks, and what there is instead."""


def roles_are_placed(config: Config) -> Iterator[Problem]:
    """Each role that the run needs is in one pool, and no other is in any."""
    if config.task != "rlhf":
        return
    needed, pools = needed_roles(config), config.rlhf.pools
    places = {role: [name for name, pool in pools.items() if role in pool.roles] for role in needed}
    for role, names in places.items():
        if pools and len(names) != 1:
            where = f"is in the pools {', '.join(names)}, and can be in one" if names else "is in no pool"
            yield Problem("rlhf.pools", ", ".join(pools), f"the {role}, which this run needs, {where}")
    for name, pool in pools.items():
        for role in dict.fromkeys(pool.roles):
            if role not in needed:
                message = f"names the {role}, which this run does not have; leave it out"
                yield Problem(f"rlhf.pools.{name}.roles", ", ".join(pool.roles), message)


def layouts_fill_pools(config: Config) -> Iterator[Problem]:
    if config.task != "rlhf" or list(roles_are_placed(config)):
        return
    pools = pools_of(config)
    for role in needed_roles(config):
        section, name = config.rlhf.roles.of(role), pool_of(config, role)
        ranks, processes = section.parallel.tensor * section.parallel.pipeline, pools[name].processes
        if processes % ranks:
            message = (
                f"tensor × pipeline = {ranks} does not divide the {processes} processes of the pool {name}; "
                "replicas must fill it"
            )
            yield Problem(f"rlhf.roles.{role}.parallel", ranks, message)
        if section.offload and role in LEARNING:
            message = "is for models that nothing is learned by; leave it out"
            yield Problem(f"rlhf.roles.{role}.offload", True, message)
        if role == "rollout" and ranks > 1:
            message = "a model of transformers is whole in each process; take tensor=1 and pipeline=1"
            yield Problem("rlhf.roles.rollout.parallel", ranks, message)


def rollout_fits(config: Config) -> Iterator[Problem]:
    rlhf, rollout = config.rlhf, config.rlhf.rollout
    if config.task != "rlhf":
        return
    if rollout.engine == "native" and rlhf.roles.actor.parallel.sequence:
        message = "is for training alone, and the actor writes its answers token by token; take false"
        yield Problem("rlhf.roles.actor.parallel.sequence", True, message)
    if rollout.engine != "native" and config.peft.method in NOT_WEIGHTS:
        message = f"{NOT_WEIGHTS[config.peft.method]}: only the actor itself can write; take native"
        yield Problem("rlhf.rollout.engine", rollout.engine, message)
    if rollout.engine == "native" and rlhf.async_steps:
        message = "needs weights to answer with while the actor learns: rlhf.rollout.engine=transformers"
        yield Problem("rlhf.async_steps", rlhf.async_steps, message)
    if rlhf.compares_groups and rollout.answers < 2:
        message = f"is too few: {rlhf.algorithm} compares answers to the same prompt; take 2 or more"
        yield Problem("rlhf.rollout.answers", rollout.answers, message)
    if rollout.max_new_tokens >= config.train.sequence_length:
        message = f"leaves no room for a prompt in train.sequence_length = {config.train.sequence_length}"
        yield Problem("rlhf.rollout.max_new_tokens", rollout.max_new_tokens, message)
    updates = rlhf.update.minibatches
    learned = rollout.prompts * (1 if rlhf.takes_the_best else rollout.answers)
    if learned < updates:
        message = f"is more than the {learned} answers of a rollout that are learned from"
        yield Problem("rlhf.update.minibatches", updates, message)


def what_it_needs(config: Config) -> Iterator[Problem]:
    if config.task != "rlhf":
        return
    if config.train.init_from is None:
        message = "is needed: answers get better that a model writes already; name a run of sft, or another"
        yield Problem("train.init_from", None, message)
    if config.rlhf.rewards or config.rlhf.environment is None:
        yield from reward_problems(config.rlhf.rewards)
    if "reward" in needed_roles(config) and config.rlhf.roles.reward.init_from is None:
        message = "is needed for rewards of kind model: name a run of task=reward, or a folder of one"
        yield Problem("rlhf.roles.reward.init_from", None, message)


def layouts_fit_models(config: Config) -> Iterator[Problem]:
    """What holds of any layout holds of each model's."""
    if config.task != "rlhf" or list(roles_are_placed(config)):
        return
    for role in needed_roles(config):
        own = role_config(config, role)
        for rule in layout_checks.RULES:
            for problem in rule(own):
                yield Problem(_of_role(problem.key, role), problem.value, _of_role(problem.message, role))


def _of_role(text: str, role: Role) -> str:
    """Keys of a role's own config as the run's config has them."""
    prefix = f"rlhf.roles.{role}"
    return text.replace("zero.stage", f"{prefix}.zero_stage").replace("parallel.", f"{prefix}.parallel.")


def keys_of_other_tasks(config: Config) -> Iterator[Problem]:
    if config.task != "rlhf":
        return
    default = Config()
    for key, instead in UNREAD.items():
        value, left_out = config, default
        for name in key.split("."):
            value, left_out = getattr(value, name), getattr(left_out, name)
        if value != left_out:
            shown = value if isinstance(value, str | int | float) else "set"
            yield Problem(key, shown, f"is not read by task=rlhf: {instead}; leave this one out")


RULES = (
    roles_are_placed,
    layouts_fill_pools,
    layouts_fit_models,
    rollout_fits,
    what_it_needs,
    keys_of_other_tasks,
)
