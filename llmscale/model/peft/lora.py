"""LoRA (arXiv:2106.09685): the update of a linear layer is a product of two thin matrices, scale · B A x.

One A and one B for each Hugging Face layer, with the names of the peft library. Of a layer that is cut along
its outputs each tensor rank has all of A and its rows of B; of one that is cut along its inputs, its columns
of A and all of B.

Shapes: S sequence, B batch, R rank (of all targets of a layer together), I inputs and O outputs of this rank.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from llmscale_kernels.low_rank import add_low_rank
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from llmscale.config.tuning import PeftSection
from llmscale.model.declaration import ParameterDeclaration
from llmscale.model.initialize import uniform_box
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.declared import added_declaration
from llmscale.model.peft.targets import Linear, Target, TargetLinear, target_linears
from llmscale.model.regions import Box, Region
from llmscale.parallel.partial import sum_gradient

PREFIX = "base_model.model."
"""Of the names that the peft library gives tensors."""


class LoraUpdate(torch.nn.Module):
    """What is added to the output of one of Megatron's linear layers.

    Args:
        found: the layer, and which of the Hugging Face layers in it are meant.
        options: rank, alpha, dropout.
    """

    def __init__(self, chunk: LanguageModel, found: TargetLinear, options: PeftSection) -> None:
        super().__init__()
        self.targets = found.targets
        self.scale = options.alpha / (math.sqrt(options.rank) if options.rslora else options.rank)
        self.dropout = torch.nn.Dropout(options.dropout)
        self.is_column_parallel = isinstance(found.linear, ColumnParallelLinear)
        self.sequence_parallel = chunk.config.sequence_parallel
        self.group = chunk.world.tensor_group
        self.is_on = True
        """Where not, the layer gives what it gave before."""
        like = {"dtype": found.weight.dtype, "device": found.weight.device}
        inputs = found.weight.shape[1]
        for target in found.targets:
            down_RI = torch.zeros(options.rank, inputs, **like)
            up_OR = torch.zeros(target.rows, options.rank, **like)
            # Parameters of this very module: ZeRO-3 gathers those, and not a child's that is never called.
            self.register_parameter(f"A_{target.short_name}", torch.nn.Parameter(down_RI))
            self.register_parameter(f"B_{target.short_name}", torch.nn.Parameter(up_OR))

    def down(self, target: Target) -> Tensor:
        """A, [R, I]."""
        return getattr(self, f"A_{target.short_name}")

    def up(self, target: Target) -> Tensor:
        """B, [O, R]."""
        return getattr(self, f"B_{target.short_name}")

    def forward(self, input_SBI: Tensor, output_SBO: Tensor, base: Linear) -> Tensor:
        """The layer's new output, [S, B, O]; `output_SBO` is what `base`, the layer itself, gave."""
        return self.added(input_SBI, output_SBO)

    def added(self, input_SBI: Tensor, output_SBO: Tensor) -> Tensor:
        """`output_SBO` + scale · B A x: of each target's part of A x, where its outputs lie."""
        inner_SBR = self.reduce(self.dropout(input_SBI))
        ups = [self._whole(self.up(target)) for target in self.targets]
        firsts = [target.first_row for target in self.targets]
        return add_low_rank(output_SBO, inner_SBR, ups, firsts, self.scale)

    def reduce(self, input_SBI: Tensor) -> Tensor:
        """A x of all targets, [S, B, R], whole on every tensor rank but for the sequence of a layer that is
        cut along its inputs."""
        down_RI = torch.cat([self.down(target) for target in self.targets])
        if not self.is_column_parallel:
            inner_SBR = F.linear(input_SBI, down_RI)
            if self.sequence_parallel:
                return reduce_scatter_to_sequence_parallel_region(inner_SBR, group=self.group)
            return reduce_from_tensor_model_parallel_region(inner_SBR, group=self.group)
        if self.sequence_parallel:
            inner_SBR = F.linear(input_SBI, sum_gradient(down_RI, self.group))
            return gather_from_sequence_parallel_region(inner_SBR, group=self.group)
        return copy_to_tensor_model_parallel_region(F.linear(input_SBI, down_RI), group=self.group)

    @property
    def rank(self) -> int:
        """Of each target."""
        return self.down(self.targets[0]).shape[0]

    def _whole(self, parameter: Tensor) -> Tensor:
        """The parameter, its gradient summed where each tensor rank applies it to a part of the sequence."""
        is_partial = self.sequence_parallel and not self.is_column_parallel
        return sum_gradient(parameter, self.group) if is_partial else parameter

    def weight_update(self, target: Target) -> Tensor:
        """scale · B A, this rank's part of it, [O, I]."""
        return self.scale * self.up(target) @ self.down(target)

    def declarations(self, prefix: str) -> Iterator[tuple[str, ParameterDeclaration]]:
        """Local name and declaration of each parameter; `prefix` is the update's own local name and a dot."""
        for target in self.targets:
            for name, regions, replicated in (
                (f"A_{target.short_name}", self._down_regions(target), self.is_column_parallel),
                (f"B_{target.short_name}", self._up_regions(target), not self.is_column_parallel),
            ):
                local_name = prefix + name
                shape = tuple(self.get_parameter(name).shape)
                yield local_name, added_declaration(local_name, shape, regions, replicated)

    def _down_regions(self, target: Target) -> tuple[Region, ...]:
        start, size = target.input_box
        box, shape = Box((0, start), (self.rank, size)), (self.rank, target.inputs)
        return (Region(f"{PREFIX}{target.name}.lora_A.weight", shape, Box((0, 0), box.size), box),)

    def _up_regions(self, target: Target) -> tuple[Region, ...]:
        name, shape = f"{PREFIX}{target.name}.lora_B.weight", (target.outputs, self.rank)
        regions: list[Region] = []
        for region in target.regions:
            start, size = target.output_box(region)
            local = Box((region.local.start[0] - target.first_row, 0), (size, self.rank))
            regions.append(Region(name, shape, local, Box((start, 0), (size, self.rank))))
        return tuple(regions)


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """An update for every linear layer that `options.target_modules` means; at first it is 0."""
    for chunk in chunks:
        for found in list(target_linears(chunk, options.target_modules)):
            attach(chunk, found, LoraUpdate(chunk, found, options), seed)


def attach(chunk: LanguageModel, found: TargetLinear, update: LoraUpdate, seed: int) -> None:
    """Make the update a part of its layer, and draw its A."""
    found.linear.lora = update
    found.linear.register_forward_hook(_change_output)
    for local_name, declaration in update.declarations(f"{found.local_name}.lora."):
        chunk.added[local_name] = declaration
        if ".lora.A_" in local_name:
            parameter = chunk.get_parameter(local_name)
            for region in declaration.regions:
                drawn = uniform_box(seed, region, 1 / math.sqrt(region.shape[1]))
                parameter.data[region.local.slices] = drawn.to(parameter)


def _change_output(
    linear: Linear, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Forward hook of the layer; older than ZeRO-3's, so the layer's weight is still gathered."""
    update = linear.lora
    assert isinstance(update, LoraUpdate)
    if not update.is_on:
        return output
    return update(inputs[0], output[0], linear), output[1]
