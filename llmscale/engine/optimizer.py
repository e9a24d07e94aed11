"""Parameter groups and optimizers."""

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
