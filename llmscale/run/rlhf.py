"""Reinforcement learning from rewards: this rank is the driver, whose models are workers on a Ray."""

from importlib import import_module

from llmscale.config.schema import Config
from llmscale.parallel.environment import RankEnvironment
from llmscale.rlhf.workers.ray_environment import prepare_ray_environment


def run(config: Config, environment: RankEnvironment) -> int:
    """Train; returns 0 when the run is complete, 75 when it was asked to stop and has saved."""
    prepare_ray_environment(config.cluster.kind == "ray")
    # Ray reads its environment when it is imported.
    return import_module("llmscale.run.rlhf_driver").drive(config, environment)
