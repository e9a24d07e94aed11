"""Initial weights as a function of seed, Hugging Face name and true shape: the same under every layout.

A Hugging Face tensor is drawn in blocks of whole rows, each from a generator of its own, so a rank draws
only the blocks it needs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import ParameterDeclaration, declare_parameters
from llmscale.model.regions import Box, Region
from llmscale.parallel.rng import derived_seed

ELEMENTS_AT_ONCE = 1 << 20
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]
RESIDUAL_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")


@torch.no_grad()
def initialize(chunk: LanguageModel, seed: int) -> None:
    """Norm weights 1, biases 0, matrices normal with `model.initializer_range`; matrices that write to
    the residual stream are scaled by 1 / sqrt(2 × layers) (GPT-2's scheme). Vocabulary padding is 0."""
    declarations = declare_parameters(chunk)
    for name, parameter in chunk.named_parameters():
        declaration = declarations[name]
        if not declaration.decays:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            continue
        parameter.zero_()
        deviation = _deviation(chunk, declaration)
        for region in declaration.regions:
            drawn = normal_box(seed, region, deviation)
            parameter[region.local.slices] = drawn.to(parameter)


def _deviation(chunk: LanguageModel, declaration: ParameterDeclaration) -> float:
    deviation = chunk.model_section.initializer_range
    if declaration.local_name.endswith(RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * chunk.model_section.layers)
    return deviation


def normal_box(seed: int, region: Region, deviation: float) -> Tensor:
    """The region's values in its local orientation, float32, on the CPU."""
    drawn = draw_box(seed, region, lambda size, generator: torch.randn(size, generator=generator))
    drawn.mul_(deviation)
    return drawn.T if region.transpose else drawn


def uniform_box(seed: int, region: Region, bound: float) -> Tensor:
    """As `normal_box`, uniform in ±`bound`."""
    drawn = draw_box(seed, region, lambda size, generator: torch.rand(size, generator=generator))
    drawn.mul_(2 * bound).sub_(bound)
    return drawn.T if region.transpose else drawn


def draw_box(seed: int, region: Region, draw: Draw) -> Tensor:
    """A box of a Hugging Face matrix of random numbers, float32, on the CPU."""
    rows, columns = region.shape
    block_rows = max(1, ELEMENTS_AT_ONCE // columns)
    box = region.box
    drawn = torch.empty(box.size)
    for block in range(box.start[0] // block_rows, -(-(box.start[0] + box.size[0]) // block_rows)):
        first = block * block_rows
        here = Box((first, 0), (min(block_rows, rows - first), columns))
        values = draw(here.size, torch.Generator().manual_seed(derived_seed(seed, region.name, block)))
        common = here.intersection(box)
        assert common is not None
        inside = common.shifted(tuple(-start for start in box.start))
        drawn[inside.slices] = values[common.shifted((-first, 0)).slices]
    return drawn
