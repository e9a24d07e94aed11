"""How many parameters a model trains."""

from collections.abc import Iterable

import torch
import torch.distributed

from llmscale.model.declaration import ParameterDeclaration
from llmscale.parallel.world import World


def trained_parameters(declarations: Iterable[ParameterDeclaration], world: World) -> int:
    """Of the whole model, in true shapes. Collective over the model's ranks.

    Args:
        declarations: of what this rank trains.
    """
    here = sum(
        region.box.volume
        for declaration in declarations
        if declaration.is_written_by(world.coordinates.tensor)
        for region in declaration.regions
    )
    total = torch.tensor(here, dtype=torch.int64, device=world.device)
    torch.distributed.all_reduce(total, group=world.model_group)
    return int(total)
