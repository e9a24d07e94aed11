"""Parameter groups, optimizers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from llmscale.config.schema import OptimizerSection
from llmscale.engine.distance import PulledAdamW
from llmscale.model.parameters import ParameterDeclaration


def parameter_groups(
    named: Mapping[str, torch.nn.Parameter],
    declarations: Mapping[str, ParameterDeclaration],
    distances: Mapping[str, int],
    weight_decay: float,
) -> list[dict[str, object]]:
    """What decays (matrices, embeddings) apart from what does not (norms, biases), and by depth.

    Args:
        distances: of each parameter from the output; parameters of one depth share a learning rate. The
            group has it as `distance`.
    """
    members: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in named.items():
        members.setdefault((distances[name], declarations[name].decays), []).append(parameter)
    groups: list[dict[str, object]] = []
    for distance, decays in sorted(members, key=lambda key: (key[0], not key[1])):
        decay = weight_decay if decays else 0.0
        groups.append({"params": members[distance, decays], "weight_decay": decay, "distance": distance})
    return groups


def build_optimizer(options: OptimizerSection, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    adamw: dict[str, Any] = {"lr": options.lr, "betas": options.betas, "eps": options.epsilon, "fused": True}
    if options.distance_penalty:
        return PulledAdamW(groups, options.distance_penalty, **adamw)
    return torch.optim.AdamW(groups, **adamw)


def learning_rate(options: OptimizerSection, steps: int, step: int) -> float:
    """Learning rate of `step` (the first is 1) in a schedule of `steps`.

    Linear warm-up, then: cosine (arXiv:1608.03983) or linear to `min_lr` at the last step; wsd: constant,
    then linear to `min_lr` over the last `decay_steps` (arXiv:2404.06395); constant.
    """
    if step <= options.warmup_steps:
        return options.lr * step / options.warmup_steps
    low = options.min_lr_or_default
    if options.schedule == "constant":
        return options.lr
    decay_steps = steps - options.warmup_steps
    if options.schedule == "wsd":
        decay_steps = options.decay_steps or max(1, steps // 10)
    progress = min(max((step - (steps - decay_steps)) / max(decay_steps, 1), 0.0), 1.0)
    if options.schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return options.lr + (low - options.lr) * progress
