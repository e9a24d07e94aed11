"""Rules about which model lives where (`rlhf.pools`, `rlhf.roles`) and who writes answers."""

from collections.abc import Iterator

from llmscale.config.problems import Problem
from llmscale.config.rlhf_rewards import reward_problems
from llmscale.config.rlhf_roles import needed_roles, pool_of, pools_of
from llmscale.config.schema import Config


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
        if section.parallel.pipeline > 1 and section.zero_stage > 1:
            message = "goes without pipeline stages only; take 1, or rlhf.roles.{role}.parallel.pipeline=1"
            yield Problem(f"rlhf.roles.{role}.zero_stage", section.zero_stage, message.format(role=role))
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
    if rollout.prompts * rollout.answers < updates:
        message = f"is more than the {rollout.prompts * rollout.answers} answers of a rollout"
        yield Problem("rlhf.update.minibatches", updates, message)


def what_it_needs(config: Config) -> Iterator[Problem]:
    if config.task != "rlhf":
        return
    if config.train.init_from is None:
        message = "is needed: answers get better that a model writes already; name a run of sft, or another"
        yield Problem("train.init_from", None, message)
    yield from reward_problems(config.rlhf.rewards)
    if "reward" in needed_roles(config) and config.rlhf.roles.reward.init_from is None:
        message = "is needed for rewards of kind model: name a run of task=reward, or a folder of one"
        yield Problem("rlhf.roles.reward.init_from", None, message)
    layout = config.parallel
    if layout.tensor * layout.pipeline > 1:
        message = "is of rlhf.roles.ROLE.parallel here, since each model has its own; leave this one out"
        yield Problem("parallel", f"{layout.tensor} × {layout.pipeline}", message)


RULES = (roles_are_placed, layouts_fill_pools, rollout_fits, what_it_needs)
