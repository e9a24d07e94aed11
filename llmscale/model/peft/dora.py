"""DoRA (arXiv:2402.09353): LoRA for the direction of each output's weights, and a learned length of its own.

    y = m / ‖W + s·B A‖ · (W x + s·B A x) + bias

The norm is over an output's weights; as in section 4.3 of the paper no gradient goes through it.

Shapes: S sequence, B batch, O outputs of this rank, I inputs.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor

from llmscale.config.tuning import PeftSection
from llmscale.model.declaration import ParameterDeclaration
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.declared import added_declaration
from llmscale.model.peft.lora import PREFIX, LoraUpdate, attach
from llmscale.model.peft.targets import Linear, Target, TargetLinear, target_linears
from llmscale.model.regions import Box, Region


class DoraUpdate(LoraUpdate):
    """LoRA's, with the magnitude of each output."""

    def __init__(self, chunk: LanguageModel, found: TargetLinear, options: PeftSection) -> None:
        super().__init__(chunk, found, options)
        weight = found.weight
        for target in found.targets:
            magnitude_O = torch.nn.Parameter(self._norm(weight, target).to(weight))
            self.register_parameter(f"magnitude_{target.short_name}", magnitude_O)

    def forward(self, input_SBI: Tensor, output_SBO: Tensor, base: Linear) -> Tensor:
        weight = base.weight
        assert weight is not None
        one = torch.ones_like(weight[:, 0])
        parts, end = [], 0
        for target in self.targets:
            magnitude = self._whole(getattr(self, f"magnitude_{target.short_name}"))
            parts += [one[end : target.first_row], magnitude / self._norm(weight, target)]
            end = target.first_row + target.rows
        factor_O = torch.cat([*parts, one[end:]])
        # A layer that is cut along its inputs leaves its bias to the caller.
        bias_O = base.bias if self.is_column_parallel else None
        plain_SBO = output_SBO if bias_O is None else output_SBO - bias_O
        more_O, factor_O = (factor_O - 1).to(one), factor_O.to(one)
        update_SBO = self.added(input_SBI, torch.zeros_like(output_SBO))
        return output_SBO + more_O * plain_SBO + factor_O * update_SBO

    @torch.no_grad()
    def _norm(self, weight: Tensor, target: Target) -> Tensor:
        """‖W + s·B A‖ of each output of the target, [O], over the inputs of all ranks; float32 or wider."""
        rows = weight[target.first_row : target.first_row + target.rows]
        wide = torch.promote_types(weight.dtype, torch.float32)
        norm_O = torch.linalg.vector_norm(rows + self.weight_update(target), dim=1, dtype=wide)
        if self.is_column_parallel or self.group.size() == 1:
            return norm_O
        square_O = norm_O.square()
        torch.distributed.all_reduce(square_O, group=self.group)
        return square_O.sqrt()

    def declarations(self, prefix: str) -> Iterator[tuple[str, ParameterDeclaration]]:
        yield from super().declarations(prefix)
        for target in self.targets:
            name = f"{PREFIX}{target.name}.lora_magnitude_vector"
            regions: list[Region] = []
            for region in target.regions:
                start, size = target.output_box(region)
                local = Box((region.local.start[0] - target.first_row,), (size,))
                regions.append(Region(name, (target.outputs,), local, Box((start,), (size,))))
            local_name = f"{prefix}magnitude_{target.short_name}"
            yield (
                local_name,
                added_declaration(local_name, (target.rows,), tuple(regions), not self.is_column_parallel),
            )


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """As `lora.apply`; magnitudes begin as the lengths of the base's weights, which must be in place."""
    for chunk in chunks:
        for found in list(target_linears(chunk, options.target_modules)):
            attach(chunk, found, DoraUpdate(chunk, found, options), seed)
