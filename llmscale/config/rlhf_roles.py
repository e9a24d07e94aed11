"""The config of each model of a run of reinforcement learning, as if it were a run of its own."""

from collections.abc import Mapping
from pathlib import Path

from llmscale.config.rlhf_pools import PoolSection, Role
from llmscale.config.schema import Config, ParallelSection, RunSection, ZeroSection
from llmscale.config.tuning import SWITCHED_OFF, PeftSection

WITH_HEAD = ("critic", "reward")
"""Roles that score and do not write."""


def needed_roles(config: Config) -> list[Role]:
    """Models that the run has, in the order in which they are made. The reference of an actor with an adapter
    is the actor without it."""
    rlhf = config.rlhf
    asked: dict[Role, bool] = {
        "actor": True,
        "rollout": rlhf.rollout.engine != "native",
        "reference": rlhf.has_kl and config.peft.method not in SWITCHED_OFF,
        "reward": any(term.kind == "model" for term in rlhf.rewards),
        "critic": rlhf.has_critic,
    }
    return [role for role, is_needed in asked.items() if is_needed]


def pools_of(config: Config) -> Mapping[str, PoolSection]:
    """Those that the config names, or one for all roles."""
    return config.rlhf.pools or {"all": PoolSection(roles=needed_roles(config), processes=config.world_size)}


def pool_of(config: Config, role: Role) -> str:
    """Name of the pool that a role lives in."""
    return next(name for name, pool in pools_of(config).items() if role in pool.roles)


def updates_of_a_step(config: Config) -> int:
    """Optimizer steps that are made of one rollout."""
    return config.rlhf.update.epochs * config.rlhf.update.minibatches


def role_config(config: Config, role: Role) -> Config:
    """Model, layout, batch and optimizer of a role over all processes of its pool.

    A head of one score is that of `task: reward`. Learning rates follow the optimizer's steps, of which one
    step of the run makes several.
    """
    section = config.rlhf.roles.of(role)
    processes = pools_of(config)[pool_of(config, role)].processes
    train = config.train.model_copy(
        update={
            "micro_batch_size": section.micro_batch_size or config.train.micro_batch_size,
            "init_from": section.init_from or _start_of(config, role),
            "steps": config.train.steps * updates_of_a_step(config),
            "stop_at": None,
        }
    )
    optimizer = config.optimizer.model_copy(update={"lr": section.lr or config.optimizer.lr})
    cluster = config.cluster.model_copy(update={"nodes": 1, "processes_per_node": processes})
    return config.model_copy(
        update={
            "task": "reward" if role in WITH_HEAD else config.task,
            "train": train,
            "optimizer": optimizer,
            "peft": config.peft if role == "actor" else PeftSection(),
            "parallel": ParallelSection(**section.parallel.model_dump()),
            "zero": ZeroSection(stage=section.zero_stage),
            "cluster": cluster,
            # The actor's checkpoints are the run's own: what is trained is there, as in every run.
            "run": config.run if role == "actor" else RunSection(root=config.run_folder, name=role),
        }
    )


def _start_of(config: Config, role: Role) -> Path | None:
    """A critic knows best from the start what a reward model knows."""
    reward = config.rlhf.roles.reward.init_from
    if role == "critic" and reward is not None and "reward" in needed_roles(config):
        return reward
    return config.train.init_from
