"""Clipping by the norm of a whole model's gradient, for a model of one replica without ZeRO's partitions."""

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor

from llmscale.model.parameters import ParameterDeclaration
from llmscale.parallel.world import World


@torch.no_grad()
def clip_gradients(
    parameters: Mapping[str, torch.nn.Parameter],
    declarations: Mapping[str, ParameterDeclaration],
    world: World,
    largest_norm: float,
) -> float:
    """Scale all gradients so that their norm over the whole model is at most `largest_norm` (0: as they are).

    Gradients that several ranks hold count once. Collective over the model's ranks, whose gradients are
    scaled by the same factor (arXiv:1211.5063).

    Returns:
        The norm before.
    """
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    counted = [g for name, g in gradients.items() if counts_here(declarations[name], world)]
    square = torch.zeros((), dtype=torch.float64, device=world.device)
    for gradient in counted:
        square += _square(gradient)
    torch.distributed.all_reduce(square, group=world.model_group)
    norm = float(square.sqrt())
    factor = largest_norm / (norm + 1e-6)
    if largest_norm > 0 and factor < 1:
        for gradient in gradients.values():
            gradient.mul_(factor)
    return norm


def counts_here(declaration: ParameterDeclaration, world: World) -> bool:
    """Of the ranks that hold a gradient, this is the one whose copy the norm takes."""
    return declaration.is_written_by(world.coordinates.tensor)


def _square(gradient: Tensor) -> Tensor:
    """Sum of squares in float64, of row norms in the gradient's own type: no float64 copy of it is made."""
    return torch.linalg.vector_norm(gradient, dim=-1).double().square().sum()
