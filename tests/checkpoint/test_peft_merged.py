"""Merging slab by slab: any box of it is the same box of the whole, which is what the formulas say."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llmscale.checkpoint import merged
from llmscale.checkpoint.manifest import TensorEntry
from llmscale.checkpoint.merged import MergedTensors
from llmscale.checkpoint.shards import DTYPE_NAMES
from llmscale.checkpoint.tensor_files import TensorSource
from llmscale.config.schema import ModelSection
from llmscale.config.tuning import PeftSection
from llmscale.model.regions import Box

LAYERS = {
    "llama": ("model.layers.0.mlp.down_proj", "model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("transformer.h.0.mlp.c_proj", "transformer.wte.weight", None),
}
OUTPUTS, INPUTS, RANK, ROWS = 24, 64, 3, 10


class InMemory(TensorSource):
    """Slabs of three rows."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.values = tensors
        self.tensors = {
            name: TensorEntry(shape=tuple(tensor.shape), dtype=DTYPE_NAMES[tensor.dtype], boxes=())  # pyright: ignore[reportArgumentType]
            for name, tensor in tensors.items()
        }

    def slabs(self, name: str, box: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        whole = self.values[name]
        box = box or Box((0,) * whole.dim(), tuple(whole.shape))
        for first in range(0, box.size[0], 3):
            size = (min(3, box.size[0] - first), *box.size[1:])
            part = Box((box.start[0] + first, *box.start[1:]), size)
            yield part, whole[part.slices].clone()


def whole(source: TensorSource, name: str, box: Box | None = None) -> Tensor:
    shape = box.size if box else source.tensors[name].shape
    start = box.start if box else (0,) * len(shape)
    found = torch.full(shape, float("nan"))
    for part, slab in source.slabs(name, box):
        assert slab.dtype == torch.float32
        found[part.shifted(tuple(-offset for offset in start)).slices] = slab
    return found


@pytest.fixture(params=[(family, method) for family in LAYERS for method in ("lora", "dora")], ids=str)
def case(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[MergedTensors, dict[str, Tensor]]:
    """A layer and its embedding, with more tokens than the base has; and what they should be, in float64."""
    # Five rows of a llama layer, 13 of gpt2's: several blocks, the last one shorter.
    monkeypatch.setattr(merged, "SLAB_BYTES", 8 * 64 * 5)
    family, method = request.param
    layer, embedding, output = LAYERS[family]
    torch.manual_seed(0)
    is_turned = family == "gpt2"
    weight_OI, down_RI, up_OR = (
        torch.randn(shape) for shape in ((OUTPUTS, INPUTS), (RANK, INPUTS), (OUTPUTS, RANK))
    )
    magnitude_O = torch.rand(OUTPUTS) + 0.5
    base = {f"{layer}.weight": weight_OI.T.contiguous() if is_turned else weight_OI}
    base |= {name: torch.randn(ROWS, INPUTS) for name in (embedding, output) if name}
    prefix = f"base_model.model.{layer}."
    trained = {
        f"{prefix}lora_A.weight": down_RI,
        f"{prefix}lora_B.weight": up_OR,
        f"optimizer.exp_avg.{prefix}lora_A.weight": down_RI,
    }
    if method == "dora":
        trained[f"{prefix}lora_magnitude_vector"] = magnitude_O
    model = ModelSection.model_validate({"family": family, "hidden_size": INPUTS})
    peft = PeftSection(method=method, rank=RANK, alpha=8.0, rslora=True)
    source = MergedTensors(InMemory(base), InMemory(trained), peft, model, ROWS + 2)
    expected_OI = weight_OI.double() + 8.0 / RANK**0.5 * up_OR.double() @ down_RI.double()
    if method == "dora":
        expected_OI *= (magnitude_O / expected_OI.norm(dim=1))[:, None]
    expected = {f"{layer}.weight": expected_OI.T if is_turned else expected_OI}
    for name in (embedding, output):
        if name:
            mean = base[name].double().mean(0)
            expected[name] = torch.cat((base[name].double(), mean.expand(2, -1)))
    return source, expected


def test_whole_tensors_are_what_the_formulas_say(case: tuple[MergedTensors, dict[str, Tensor]]) -> None:
    source, expected = case
    assert source.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert source.tensors[name].shape == tensor.shape
        # Rounded once, from a float64 that may be off by rounding of its own.
        assert (whole(source, name).double() - tensor).abs().max() <= 2**-24 * tensor.abs().max() + 1e-12


def test_a_box_has_the_same_bits_as_the_whole(case: tuple[MergedTensors, dict[str, Tensor]]) -> None:
    source, expected = case
    for name, tensor in expected.items():
        rows, columns = tensor.shape
        every = whole(source, name)
        for first, last in ((0, 1), (3, rows), (rows - 1, rows), (4, 11)):
            for left, right in ((0, columns), (7, 20)):
                box = Box((first, left), (last - first, right - left))
                assert torch.equal(whole(source, name, box), every[first:last, left:right])
