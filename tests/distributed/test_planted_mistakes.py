"""The parity test must notice the mistakes it is there for: each is planted, and must be found."""

from typing import Any

import pytest
from llmscale_kernels.cross_entropy import cross_entropy
from torch import Tensor

from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import ParameterDeclaration
from llmscale.parallel.world import World
from tests.distributed.parity import TOLERANCES, compare, parity_config, train


def no_sum(tensor: Tensor, _: Any) -> Tensor:
    """A partial gradient that nobody completes."""
    return tensor


def count_everything(declaration: ParameterDeclaration, world: World) -> bool:
    """The gradient norm takes the second copy of the tied embedding for a weight of its own."""
    return not declaration.tensor_replicated or world.coordinates.tensor == 0


def mark_nothing_replicated(engine: Engine) -> None:
    """DeepSpeed takes the second copy of the tied embedding for a weight of its own."""
    for name, parameter in engine.parameters.items():
        parameter.tensor_model_parallel = not engine.declarations[name].tensor_replicated  # pyright: ignore[reportAttributeAccessIssue]


def padding_counts(chunk: LanguageModel, logits_SBV: Tensor, labels_SB: Tensor) -> Tensor:
    """Cross-entropy over the padded vocabulary."""
    columns = logits_SBV.shape[-1]
    labels_T = labels_SB.flatten()
    group = chunk.world.tensor_group
    losses_T = cross_entropy(
        logits_SBV.view(-1, columns), labels_T, columns * chunk.world.coordinates.tensor, columns, group
    )
    return losses_T.view(labels_SB.shape)


def sum_nothing(_: Engine) -> None:
    """Each end of the pipeline updates its copy of the tied embedding by its own gradient."""


MISTAKES = {
    "missing sum over tensor ranks": (
        {"tensor": 2, "sequence": True},
        {"llmscale.model.norm.sum_gradient": no_sum},
        "gradient",
    ),
    "tied weight twice in the norm": (
        {"pipeline": 2, "tied": True},
        {"llmscale.engine.clip.counts_here": count_everything},
        "gradient norm",
    ),
    "tied weight twice in ZeRO's norm": (
        {"pipeline": 2, "data": 2, "tied": True},
        {"llmscale.engine.engine.Engine._mark_for_gradient_norm": mark_nothing_replicated},
        "gradient norm",
    ),
    "tied gradients not summed": (
        {"pipeline": 2, "tied": True},
        {"llmscale.engine.engine.Engine._sum_tied_gradients": sum_nothing},
        "loss",
    ),
    "padded logits not masked": (
        {"tensor": 2},
        {"llmscale.objectives.label_losses.token_losses": padding_counts},
        "loss",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_parity_finds(mistake: str) -> None:
    layout, patches, found_in = MISTAKES[mistake]
    reference = train(parity_config(tied=layout.get("tied", False)), steps=3)
    run = train(parity_config(**layout), patches, steps=3)
    with pytest.raises(AssertionError, match=found_in):
        compare(run, reference, TOLERANCES["fp32"])
