"""A chunk in which nothing is trained still takes part in the backward pass, and its optimizer has to have
something: a number that adds nothing."""

import torch

from llmscale.model.declaration import ParameterDeclaration
from llmscale.model.language_model import LanguageModel


def anchor(chunk: LanguageModel) -> None:
    """Give the chunk an anchor if it needs one; checkpoints know nothing of it."""
    if any(parameter.requires_grad for parameter in chunk.parameters()):
        return
    dtype, device = chunk.config.params_dtype, chunk.world.device
    chunk.anchor = torch.nn.Parameter(torch.zeros(1, dtype=dtype, device=device))
    chunk.added["anchor"] = ParameterDeclaration(
        local_name="anchor",
        shape=(1,),
        regions=(),
        tensor_replicated=True,
        pipeline_replica=False,
        tied=False,
    )
