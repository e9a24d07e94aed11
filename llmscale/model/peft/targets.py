"""The linear layers of a model by their Hugging Face names, several of which may be one of Megatron's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.layers import RowParallelLinear
from torch import Tensor

from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import declare_parameters
from llmscale.model.peft.names import LINEARS, WEIGHT, is_meant
from llmscale.model.regions import Region

Linear = ColumnParallelLinear | RowParallelLinear


@dataclass(frozen=True)
class Target:
    """One Hugging Face linear layer: some rows of one of Megatron's."""

    name: str
    """`model.layers.0.self_attn.q_proj`."""
    regions: tuple[Region, ...]
    """Of its weight; their local boxes lie in Megatron's."""

    @property
    def short_name(self) -> str:
        """Its name within the layer, fit for an attribute."""
        return self.name.rpartition(".")[2]

    @property
    def first_row(self) -> int:
        """Where its rows begin in Megatron's layer."""
        return min(region.local.start[0] for region in self.regions)

    @property
    def rows(self) -> int:
        """Outputs on this rank."""
        return sum(region.local.size[0] for region in self.regions)

    @property
    def outputs(self) -> int:
        """Of the whole layer."""
        region = self.regions[0]
        return region.shape[1] if region.transpose else region.shape[0]

    @property
    def inputs(self) -> int:
        """Of the whole layer."""
        region = self.regions[0]
        return region.shape[0] if region.transpose else region.shape[1]

    def output_box(self, region: Region) -> tuple[int, int]:
        """First output, and number of them, of one of the regions."""
        place = 1 if region.transpose else 0
        return region.box.start[place], region.box.size[place]

    @property
    def input_box(self) -> tuple[int, int]:
        """First input, and number of them, on this rank."""
        region = self.regions[0]
        place = 0 if region.transpose else 1
        return region.box.start[place], region.box.size[place]


@dataclass(frozen=True)
class TargetLinear:
    """One of Megatron's linear layers, and what of it is to be changed."""

    local_name: str
    linear: Linear
    targets: tuple[Target, ...]

    @property
    def weight(self) -> Tensor:
        """Of the layer, [O, I]."""
        assert self.linear.weight is not None
        return self.linear.weight


def target_linears(chunk: LanguageModel, patterns: Sequence[str]) -> Iterator[TargetLinear]:
    """The chunk's linear layers of which something is meant by `patterns` (all, where there is none)."""
    declarations = declare_parameters(chunk)
    for local_name, module in chunk.named_modules():
        if not local_name.endswith(LINEARS):
            continue
        by_module: dict[str, list[Region]] = {}
        for region in declarations[local_name + WEIGHT].regions:
            by_module.setdefault(region.name.removesuffix(WEIGHT), []).append(region)
        targets = tuple(
            Target(name, tuple(regions)) for name, regions in by_module.items() if is_meant(name, patterns)
        )
        if targets:
            assert isinstance(module, Linear)
            yield TargetLinear(local_name, module, targets)
